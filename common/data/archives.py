"""Public archives of dermatology, as they are downloaded: one entry each.

An entry says which tables an archive has, what its columns and values mean in the words of the
study ``skin-lesions``, and how its tables tell the hospital. :mod:`common.data.archive_sorting`
does the rest, so a new archive is a new entry of :data:`ARCHIVES`.

Column names are known in any case. A column that several tables of an archive have is taken from
the first of them in which it is filled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

Row = Mapping[str, str]  # of the joined tables, by normalised column; a missing cell is ""


@dataclass(frozen=True)
class Table:
    """A table of an archive, one row a picture.

    Parameters
    ----------
    names : tuple of str
        File names that it goes by; where several are there, the first of them is read.
    image : str
        Column of the picture, with or without its file's ending.
    columns : tuple of str
        Columns that it must have besides.
    optional : tuple of str
        Columns that only some copies have.
    needed : bool
        Whether the archive is of no use without the table.
    """

    names: tuple[str, ...]
    image: str
    columns: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    needed: bool = True


@dataclass(frozen=True)
class Archive:
    """A public archive.

    Parameters
    ----------
    title : str
    tables : tuple of Table
        The first lists the pictures and their diagnoses; the others are joined to it.
    diagnoses : mapping of str to str
        The study's class for each value of ``diagnosis``, or for each column of ``one_hot``.
        What is not among them is no diagnosis of the study.
    diagnosis : str
        Column of the diagnosis.
    one_hot : tuple of str
        Or the columns of which one holds a 1.
    patient, age, sex, body_site : str
        Columns, where there are such.
    lesion : tuple of str
        Columns that identify a lesion together.
    centre : callable, optional
        Hospital that a row tells, or "". Left out: the tables do not tell it.
    split : str
        Column of the published split.
    keep : tuple of str
        Columns that are kept under their own names, for studies with other labels.
    same : Table, optional
        List of pairs of pictures that are the same; its ``image`` and single column name them.
    smaller : str
        Ending of a name that marks a smaller copy of the picture without it.
    folders : tuple of str
        Where two folders hold pictures of the same name: which to take, best first.
    remarks : mapping of str to str
        What must be known of a value of ``diagnosis``.
    where : str
        Where the tables come from.
    """

    title: str
    tables: tuple[Table, ...]
    diagnoses: Mapping[str, str]
    diagnosis: str = ""
    one_hot: tuple[str, ...] = ()
    patient: str = ""
    lesion: tuple[str, ...] = ()
    age: str = ""
    sex: str = ""
    body_site: str = ""
    centre: Callable[[Row], str] | None = None
    split: str = ""
    keep: tuple[str, ...] = ()
    same: Table | None = None
    smaller: str = ""
    folders: tuple[str, ...] = ()
    remarks: Mapping[str, str] = field(default_factory=dict)
    where: str = ""


_EIGHT = ("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC")
_ISIC_2019 = {name: name for name in _EIGHT}
_FED_CENTRES = ("bcn", "vidir_molemax", "vidir_modern", "rosendahl", "msk", "vienna_dias")
_HAM10000 = ("HAM10000_metadata.csv", "HAM10000_metadata", "HAM10000_metadata.tab")
_ISIC_2019_METADATA = Table(
    ("ISIC_2019_Training_Metadata.csv",),
    image="image",
    columns=("age_approx", "anatom_site_general", "lesion_id", "sex"),
)


def _isic2019_centre(row: Row) -> str:
    """Source of HAM10000 where its table is there, else the collection in the lesion's number."""
    prefix = row["lesion_id"][:3].casefold()
    return row.get("dataset", "") or (prefix if prefix in ("bcn", "ham", "msk") else "")


def _fed_centre(row: Row) -> str:
    number = row["center"].removesuffix(".0")
    known = number.isdecimal() and int(number) < len(_FED_CENTRES)
    return _FED_CENTRES[int(number)] if known else number


ARCHIVES: dict[str, Archive] = {
    "isic2019": Archive(
        title="ISIC 2019 challenge, training data",
        tables=(
            Table(("ISIC_2019_Training_GroundTruth.csv",), image="image", columns=(*_EIGHT, "UNK")),
            _ISIC_2019_METADATA,
            # Without it the four sources of HAM10000 are one hospital.
            Table(_HAM10000, image="image_id", optional=("dataset",), needed=False),
        ),
        diagnoses=_ISIC_2019,
        one_hot=(*_EIGHT, "UNK"),
        lesion=("lesion_id",),
        age="age_approx",
        sex="sex",
        body_site="anatom_site_general",
        centre=_isic2019_centre,
        smaller="_downsampled",
        folders=("ISIC_2019_Training_Input",),
        where="the ISIC challenge of 2019",
    ),
    "isic2020": Archive(
        title="ISIC 2020 challenge (SIIM-ISIC), training data",
        tables=(
            Table(
                (
                    "ISIC_2020_Training_GroundTruth_v2.csv",
                    "ISIC_2020_Training_GroundTruth.csv",
                    "train.csv",
                ),
                image="image_name",
                columns=(
                    "patient_id",
                    "sex",
                    "age_approx",
                    "anatom_site_general_challenge",
                    "diagnosis",
                    "benign_malignant",
                ),
                optional=("lesion_id", "target"),
            ),
        ),
        diagnoses={
            "melanoma": "MEL",
            "nevus": "NV",
            "seborrheic keratosis": "BKL",
            "solar lentigo": "BKL",
            "lentigo NOS": "BKL",
            "lichenoid keratosis": "BKL",
        },
        diagnosis="diagnosis",
        patient="patient_id",
        lesion=("lesion_id",),
        age="age_approx",
        sex="sex",
        body_site="anatom_site_general_challenge",
        keep=("benign_malignant",),
        same=Table(
            ("ISIC_2020_Training_Duplicates.csv",),
            image="image_name_1",
            columns=("image_name_2",),
            needed=False,
        ),
        folders=("ISIC_2020_Training_JPEG", "jpeg"),
        remarks={"unknown": "ISIC 2020 calls 'unknown' what is benign and was not told further"},
        where="the ISIC challenge of 2020",
    ),
    "ham10000": Archive(
        title="HAM10000, the training data of the ISIC 2018 challenge, task 3",
        tables=(
            Table(
                _HAM10000,
                image="image_id",
                columns=("lesion_id", "dx", "age", "sex", "localization"),
                optional=("dx_type", "dataset"),
            ),
        ),
        diagnoses={
            "mel": "MEL",
            "nv": "NV",
            "bcc": "BCC",
            "akiec": "AK",
            "bkl": "BKL",
            "df": "DF",
            "vasc": "VASC",
        },
        diagnosis="dx",
        lesion=("lesion_id",),
        age="age",
        sex="sex",
        body_site="localization",
        centre=lambda row: row.get("dataset", ""),
        folders=(
            "HAM10000_images_part_1",
            "HAM10000_images_part_2",
            "ISIC2018_Task3_Training_Input",
        ),
        remarks={
            "akiec": "'akiec' becomes AK; it also holds carcinomas in situ, which ISIC 2019 calls "
            "SCC"
        },
        where="Harvard Dataverse, doi:10.7910/DVN/DBW86T",
    ),
    "pad-ufes": Archive(
        title="PAD-UFES-20, pictures by smartphone",
        tables=(
            Table(
                ("metadata.csv",),
                image="img_id",
                columns=("patient_id", "lesion_id", "age", "gender", "region", "diagnostic"),
                optional=("fitspatrick", "biopsed"),
            ),
        ),
        diagnoses={
            "MEL": "MEL",
            "NEV": "NV",
            "BCC": "BCC",
            "ACK": "AK",
            "SEK": "BKL",
            "SCC": "SCC",
        },
        diagnosis="diagnostic",
        patient="patient_id",
        lesion=("patient_id", "lesion_id"),  # as in the names of the files
        age="age",
        sex="gender",
        body_site="region",
        where="Mendeley Data, doi:10.17632/zr7vgbcyr2.1",
    ),
    "fed-isic2019": Archive(
        title="Fed-ISIC2019 of FLamby",
        tables=(
            Table(
                ("train_test_split", "train_test_split.csv"),
                image="image",
                columns=(*_EIGHT, "UNK", "center", "fold"),
                optional=("target", "fold2"),
            ),
            # It alone tells which pictures show one lesion.
            _ISIC_2019_METADATA,
        ),
        diagnoses=_ISIC_2019,
        one_hot=(*_EIGHT, "UNK"),
        lesion=("lesion_id",),
        age="age_approx",
        sex="sex",
        body_site="anatom_site_general",
        centre=_fed_centre,
        split="fold",
        smaller="_downsampled",
        folders=("ISIC_2019_Training_Input_preprocessed", "ISIC_2019_Training_Input"),
        where="FLamby's repository (train_test_split) and the ISIC challenge of 2019 (metadata)",
    ),
}
