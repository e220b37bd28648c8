"""Small archives laid out as the public ones are downloaded."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

ISIC_2019 = ("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC", "UNK")
PAD = (
    "patient_id,lesion_id,smoke,drink,background_father,background_mother,age,pesticide,gender,"
    "skin_cancer_history,cancer_history,has_piped_water,has_sewage_system,fitspatrick,region,"
    "diameter_1,diameter_2,diagnostic,itch,grew,hurt,changed,bleed,elevation,img_id,biopsed"
)


def picture(number: int = 0, kind: str = "JPEG", size: int = 12) -> bytes:
    """Encode a picture that is unlike those of other numbers."""
    pixels = np.random.default_rng(number).integers(0, 255, (size, size, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def put(path: Path, data: bytes | str) -> Path:
    """Write a file, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def table(header: str, rows: Iterable[Iterable[object]]) -> str:
    """Join cells as those archives do."""
    return "\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n"


def zipped(path: Path, members: Mapping[str, bytes]) -> Path:
    """Write a zip."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def pictures(folder: Path, names: Iterable[str], ending: str = ".jpg") -> None:
    """Write a picture for each name."""
    kind = "PNG" if ending == ".png" else "JPEG"
    for number, name in enumerate(names):
        put(folder / (name + ending), picture(number, kind))


def one_hot(diagnosis: str, mark: str = "1.0", none: str = "0.0") -> list[str]:
    """Mark a diagnosis of ISIC 2019."""
    return [mark if name == diagnosis else none for name in ISIC_2019]


def isic2019(
    folder: Path, rows: Iterable[tuple[str, str, str]], *, folders: str = "ISIC_2019_Training_Input"
) -> Path:
    """Write ISIC 2019 of rows of picture, diagnosis and lesion."""
    rows = list(rows)
    truth = table("image," + ",".join(ISIC_2019), [(name, *one_hot(dx)) for name, dx, _ in rows])
    put(folder / "ISIC_2019_Training_GroundTruth.csv", truth)
    write_metadata(folder, [(name, lesion) for name, _, lesion in rows])
    pictures(folder / folders, [name for name, _, _ in rows])
    return folder


def write_metadata(folder: Path, rows: Iterable[tuple[str, str]]) -> None:
    """Write ISIC 2019's table of patients, of rows of picture and lesion."""
    header = "image,age_approx,anatom_site_general,lesion_id,sex"
    cells = [(name, "55.0", "anterior torso", lesion, "female") for name, lesion in rows]
    put(folder / "ISIC_2019_Training_Metadata.csv", table(header, cells))


def fed_isic2019(folder: Path, rows: Iterable[tuple[str, str, str, int, str]]) -> Path:
    """Write Fed-ISIC2019 of rows of picture, diagnosis, lesion, centre and fold."""
    rows = list(rows)
    header = ",image," + ",".join(ISIC_2019) + ",target,center,fold,fold2"
    cells = [
        (k, name, *one_hot(dx), ISIC_2019.index(dx), centre, fold, f"{fold}_{centre}")
        for k, (name, dx, _, centre, fold) in enumerate(rows)
    ]
    put(folder / "train_test_split", table(header, cells))
    write_metadata(folder, [(name, lesion) for name, _, lesion, _, _ in rows])
    names = [name for name, *_ in rows]
    pictures(folder / "ISIC_2019_Training_Input_preprocessed", names)
    for number, name in enumerate(names):  # the unprocessed ones lie beside them
        raw = picture(number + 1000, size=20)
        put(folder / "ISIC_2019_Training_Input" / f"{name}.jpg", raw)
    return folder


def isic2020(
    folder: Path,
    rows: Iterable[tuple[str, str, str, str]],
    *,
    same: Iterable[tuple[str, str]] = (),
) -> Path:
    """Write ISIC 2020 of rows of picture, patient, diagnosis and benign or malignant."""
    rows = list(rows)
    header = (
        "image_name,patient_id,sex,age_approx,anatom_site_general_challenge,diagnosis,"
        "benign_malignant,target"
    )
    cells = [
        (name, patient, "male", 45.0, "torso", dx, kind, int(kind == "malignant"))
        for name, patient, dx, kind in rows
    ]
    put(folder / "train.csv", table(header, cells))
    pairs = list(same)
    if pairs:
        text = table("image_name_1,image_name_2", pairs)
        put(folder / "ISIC_2020_Training_Duplicates.csv", text)
    pictures(folder / "jpeg" / "train", [name for name, *_ in rows])
    return folder


def ham10000(
    folder: Path, rows: Iterable[tuple[str, str, str, str]], *, dataset: bool = True
) -> Path:
    """Write HAM10000 of rows of picture, lesion, diagnosis and source."""
    rows = list(rows)
    header = "lesion_id,image_id,dx,dx_type,age,sex,localization" + dataset * ",dataset"
    cells = [
        (lesion, name, dx, "histo", "80.0", "male", "scalp", *([source] if dataset else []))
        for name, lesion, dx, source in rows
    ]
    put(folder / ("HAM10000_metadata" + (not dataset) * ".csv"), table(header, cells))
    half = len(rows) // 2
    pictures(folder / "HAM10000_images_part_1", [name for name, *_ in rows[:half]])
    pictures(folder / "HAM10000_images_part_2", [name for name, *_ in rows[half:]])
    return folder


def pad_ufes(path: Path, rows: Iterable[tuple[str, int, str]]) -> Path:
    """Write PAD-UFES-20, zips in a zip, of rows of patient, lesion and diagnosis."""
    header, cells, members = PAD.split(","), [], {}
    for number, (patient, lesion, dx) in enumerate(rows):
        name = f"{patient}_{lesion}_{100 + number}.png"
        row = dict.fromkeys(header, "")
        row |= {"patient_id": patient, "lesion_id": lesion, "age": 8, "region": "FACE"}
        row |= {"diagnostic": dx, "img_id": name, "biopsed": "False", "itch": "UNK"}
        row |= {"gender": "FEMALE" if number % 2 else ""}
        cells.append([row[column] for column in header])
        members[name] = picture(number, "PNG")
    inner = {}
    for part in range(3):
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            for name in list(members)[part::3]:
                archive.writestr(f"imgs_part_{part + 1}/{name}", members[name])
        inner[f"zr7vgbcyr2-1/images/imgs_part_{part + 1}.zip"] = stream.getvalue()
    text = table(PAD, cells).encode()
    return zipped(path, {**inner, "zr7vgbcyr2-1/metadata.csv": text})
