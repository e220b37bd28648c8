"""What may leave a DICOM header: columns of an image, each with a listed term or a number.

A free text may name a person whatever its element is called, so nothing is copied: a value is
looked up in a list of defined terms, and one that is not there becomes empty.
"""

from __future__ import annotations

import re
from datetime import date
from typing import Any

from common.data.dicom_files import numbers, text
from common.data.tables import MOST_YEARS

COLUMNS = (
    *("modality", "body_part", "view", "laterality", "sex", "age", "manufacturer"),
    *("row_spacing_mm", "column_spacing_mm"),
)
OLDEST = "90+"  # ages of 90 and more are one category: 45 CFR 164.514(b)(2)(i)(C)


def _terms(words: str) -> frozenset[str]:
    return frozenset(words.split())


MODALITIES = _terms(
    "CR CT DMS DX EPS ES GM HC IO IVOCT IVUS LEN MG MR NM OAM OCT OP OPM OPT OPTBSV OPTENF OT PT "
    "PX RF RG SC SM TG US XA XC"
)
# Body Part Examined: PS3.16, annex L, the terms in use for pictures.
_BODY_PARTS = _terms(
    "ABDOMEN ABDOMENPELVIS ADRENAL ANKLE ANUS AORTA ARM AXILLA BACK BLADDER BRAIN BREAST BRONCHUS "
    "BUTTOCK CALCANEUS CALF CAROTID CEREBELLUM CHEEK CHEST CHESTABDOMEN CHESTABDPELVIS CHIN CIRCLE "
    "CLAVICLE COCCYX COLON CORNEA CSPINE CTSPINE DUODENUM EAR ELBOW ESOPHAGUS EXTREMITY EYE EYELID "
    "FACE FEMUR FINGER FOOT FOREARM FOREHEAD GALLBLADDER GROIN HAND HEAD HEADNECK HEART HIP "
    "HUMERUS ILEUM ILIUM JAW JEJUNUM KIDNEY KNEE LARYNX LEG LIVER LLEG LOWERLEG LSPINE LSSPINE "
    "LUNG MAXILLA MEDIASTINUM MOUTH NECK NECKCHEST NECKCHESTABDOMEN NOSE OPTICCANAL ORBIT OVARY "
    "PANCREAS PAROTID PATELLA PELVIS PENIS PHARYNX PROSTATE RADIUS RADIUSULNA RECTUM RETINA RIB "
    "SCALP SCAPULA SCLERA SCROTUM SHOULDER SIJOINT SKIN SKULL SPINE SPLEEN SSPINE STERNUM STOMACH "
    "SUBMANDIBULAR TESTIS THIGH THUMB THYMUS THYROID TIBIA TIBIAFIBULA TLSPINE TMJ TOE TONGUE "
    "TOOTH TRACHEA TSPINE ULNA URETER URETHRA UTERUS VAGINA VULVA WHOLEBODY WRIST ZYGOMA"
)
_VIEWS = _terms("AP PA LL RL RLD LLD RLO LLO CC MLO ML LM LMO XCC XCCL XCCM CV AT")
_LATERALITIES = _terms("R L U B")
_SEXES = _terms("M F")
_MANUFACTURERS = {  # a word of the element's text, and the name that is written
    "agfa": "Agfa",
    "canon": "Canon",
    "carestream": "Carestream",
    "ge": "GE",
    "fujifilm": "Fujifilm",
    "fuji": "Fujifilm",
    "hitachi": "Hitachi",
    "hologic": "Hologic",
    "konica": "Konica Minolta",
    "philips": "Philips",
    "samsung": "Samsung",
    "shimadzu": "Shimadzu",
    "siemens": "Siemens",
    "toshiba": "Toshiba",
    "uih": "United Imaging",
}
_SPACING_MM = (1e-4, 100.0)
_UNITS = {"Y": 1, "M": 12, "W": 52, "D": 365}  # so many to a year


def columns_of(dataset: Any) -> dict[str, str]:
    """Values of :data:`COLUMNS` for an image; empty where its header tells no listed one."""
    spacing: tuple[float, ...] = ()
    for keyword in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"):
        spacing = spacing or numbers(dataset, keyword)
    low, high = _SPACING_MM
    if len(spacing) != 2 or not all(low <= one <= high for one in spacing):
        spacing = ()
    row, column = (f"{one:.4g}" for one in spacing) if spacing else ("", "")
    return {
        "modality": _term(dataset, "Modality", MODALITIES),
        "body_part": _term(dataset, "BodyPartExamined", _BODY_PARTS),
        "view": _term(dataset, "ViewPosition", _VIEWS),
        "laterality": _term(dataset, "ImageLaterality", _LATERALITIES)
        or _term(dataset, "Laterality", _LATERALITIES),
        "sex": _term(dataset, "PatientSex", _SEXES),
        "age": _age(dataset),
        "manufacturer": _manufacturer(text(dataset, "Manufacturer")),
        "row_spacing_mm": row,
        "column_spacing_mm": column,
    }


def age_in_years(age: str, born: str, examined: str) -> str:
    """Whole years as text, :data:`OLDEST` from 90 on, empty where not known.

    Parameters
    ----------
    age : str
        Patient's Age, such as ``045Y`` or ``010M``.
    born, examined : str
        Dates as YYYYMMDD, for where there is no such age.
    """
    years = -1
    if match := re.fullmatch(r"(\d{1,3})([YMWD])", age):
        years = int(match[1]) // _UNITS[match[2]]
    else:
        birth, exam = _day(born), _day(examined)
        if birth and exam:
            before_birthday = (exam.month, exam.day) < (birth.month, birth.day)
            years = exam.year - birth.year - before_birthday
    if not 0 <= years <= MOST_YEARS:
        return ""
    return OLDEST if years >= 90 else str(years)


def _age(dataset: Any) -> str:
    keywords = ("PatientAge", "PatientBirthDate", "StudyDate")
    return age_in_years(*(text(dataset, keyword) for keyword in keywords))


def _day(digits: str) -> date | None:
    try:
        return date(int(digits[:4]), int(digits[4:6]), int(digits[6:8]))
    except ValueError:
        return None


def _term(dataset: Any, keyword: str, accepted: frozenset[str]) -> str:
    value = text(dataset, keyword).upper().replace(" ", "").replace("_", "")
    return value if value in accepted else ""


def _manufacturer(told: str) -> str:
    words = re.split(r"[^a-z]+", told.lower())
    return next((name for word, name in _MANUFACTURERS.items() if word in words), "")
