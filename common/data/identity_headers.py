"""What an image file's header tells of a person, or may: by the kind of element, never its value.

Of NIfTI, JSON sidecars, EXIF, XMP, IPTC and text in pictures, and DICOM. No pixel is read; files
may be broken or hostile, so what is read is bounded, and what cannot be read tells nothing: whether
a file can be used is for others to say. What cameras and programs write of themselves is no
identity. Makers' private elements and notes are not understood; EXIF's are told where there are
any, as some hold the owner's name.
"""

from __future__ import annotations

import gzip
import json
import re
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from common.data.identities import looks_like
from common.errors import DataContractError
from common.site_files import open_inside, read_text

_MOST_HEAD = 2**16  # bytes of a NIfTI header with its extensions
_MOST_SIDECAR = 2**20
_MOST_JPEG_HEAD = 2**14  # looked at before Pillow opens it
_MOST_CHUNK = 2**16  # of a PNG's text or EXIF
_MOST_CHUNKS = 10_000
_MOST_KEYS = 10_000  # of a sidecar
_SIDECARS = 20  # in a data set's own folder

# Of PS3.15's basic profile, what tells who was imaged, where, or by whom. The keys of a BIDS
# sidecar bear the same names.
DICOM = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientBirthTime", "PatientBirthName"),
    *("PatientMotherBirthName", "OtherPatientIDs", "OtherPatientIDsSequence", "OtherPatientNames"),
    *("PatientAddress", "PatientTelephoneNumbers", "PatientComments", "AdditionalPatientHistory"),
    *("PatientInsurancePlanCodeSequence", "MedicalRecordLocator", "MilitaryRank", "Occupation"),
    *("PatientReligiousPreference", "ResponsiblePerson", "AccessionNumber", "AdmissionID"),
    *("InstitutionName", "InstitutionAddress", "InstitutionalDepartmentName", "PersonName"),
    *("ReferringPhysicianName", "ReferringPhysicianAddress", "ReferringPhysicianTelephoneNumbers"),
    *("PhysiciansOfRecord", "PerformingPhysicianName", "NameOfPhysiciansReadingStudy"),
    *("RequestingPhysician", "ConsultingPhysicianName", "OperatorsName", "ReviewerName"),
    *("VerifyingObserverName", "RequestAttributesSequence", "ImageComments"),
)
_BURNED_IN = "BurnedInAnnotation"
# What is there of an image that was made anonymous, if it bears a pseudonym.
_PSEUDONYMS = ("PatientName", "PatientID", "OtherPatientIDs")
_EMPTY = re.compile(r"(?i)[\s^0xX*_.-]*|anon\w*|de-?identified|removed|none|n/?a|unknown|null")

_EXIF = {
    0x010D: "DocumentName",
    0x010E: "ImageDescription",
    0x013B: "Artist",
    0x013C: "HostComputer",
    0x8298: "Copyright",
    0x83BB: "IPTC",
    0x9C9B: "XPTitle",
    0x9C9C: "XPComment",
    0x9C9D: "XPAuthor",
    0x9C9E: "XPKeywords",
    0x9C9F: "XPSubject",
}
_EXIF_OF_PHOTOGRAPHS = {
    0x927C: "MakerNote",
    0x9286: "UserComment",
    0xA430: "CameraOwnerName",
    0xA431: "BodySerialNumber",
}
_PHOTOGRAPHS, _GPS, _XMP, _IPTC = 0x8769, 0x8825, 0x02BC, 0x0404
_GPS_VERSION = 0
_XMP_NAMES = re.compile(
    rb"\b(?:dc:(?:creator|description|title|rights|subject|contributor)|exif:GPS\w+|DICOM:\w+|"
    rb"photoshop:(?:Headline|CaptionWriter|AuthorsPosition|Credit|City)|Iptc4xmp\w+:\w+|"
    rb"mwg-rs:Name|\w+:PersonInImage|xmpRights:\w+|aux:OwnerName|\w+:PersonDisplayName)\b"
)
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_TEXT = ("Title", "Author", "Description", "Copyright", "Comment", "Disclaimer", "Source")
_PNG_OF_PROGRAMS = re.compile(r"Software|Creation Time|date:\w+|dpi|Warning")

# What programs and cameras write of themselves.
_SOFTWARE = re.compile(
    r"""(?ix)(?:
    (?:FSL|SPM|AFNI|ITK|ANTs|FreeSurfer|dcm2niix?|nibabel|nilearn|MRIcron|Philips|Siemens|GE|MONAI|
       TorchIO|BrainVISA|Convert3D|MINC|Slicer|ImageJ|GIMP|Photoshop|LEAD\ Technologies|Lavc|
       OLYMPUS|SONY|MINOLTA|KODAK|SAMSUNG)
      (?:\ (?:DIGITAL\ CAMERA|DSC|compatible|MEDICAL\ SYSTEMS|Inc\.))?
      [\s_:v-]{0,2}[\d.]*(?:[-:+][0-9a-f]{4,40})?(?:\ \w{3}\ \d\d?\ \d{4})?
    | spm\ -\ [\w\ -]{0,40}normali[sz]ed | Created\ with\ GIMP | (?:spm_)?realigned
    | CREATOR:\ gd-jpeg\ v[\d.]+\ \(using\ IJG\ JPEG\ v\d+\),\ (?:default\ )?quality(?:\ =)?\ ?\d*
    | File\ written\ by\ Adobe\ Photoshop.?\ ?[\d.]* | \d+(?:\.\d+)+(?::[0-9a-f]+)?
    | (?:TE|TR|TI|FA|Time|phase|mb|dwell)=[\d.+-]+(?:;\ ?\w{1,8}=[\d.+-]*)* | -?[\d.\ ]+
    | MRI?|CT|PET|T1w?|T2w?|FLAIR|BOLD|DTI|none|unknown|default
    )"""
)


def in_nifti(path: Path, *, root: Path, site: str) -> set[str]:
    """Kinds of identities in a NIfTI header, its extensions, and the JSON sidecar beside it."""
    found = _quietly(_nifti, path, root, site)
    return found | in_sidecar(path, root=root, site=site)


def in_sidecar(path: Path, *, root: Path, site: str) -> set[str]:
    """Kinds of identities among the keys of an image's JSON sidecar."""
    name = re.sub(r"\.nii(\.gz)?$|\.json$", "", path.name) + ".json"
    return _sidecar(path.with_name(name), root, site)


def in_dataset(root: Path, site: str) -> Iterator[tuple[str, set[str]]]:
    """Kinds of identities in the sidecars at the top of a BIDS data set, with their names."""
    for path in sorted(root.glob("*.json"))[:_SIDECARS]:
        yield path.name, _sidecar(path, root, site)


def in_picture(path: Path, *, root: Path, site: str) -> set[str]:
    """Kinds of identities in the EXIF, XMP, IPTC data and texts of a picture file."""
    return _quietly(_picture, path, root, site)


def in_dicom(path: Path, *, root: Path, site: str) -> set[str]:
    """Kinds of identities among a DICOM file's elements."""
    return _quietly(_dicom, path, root, site)


def _quietly(look: Any, path: Path, root: Path, site: str) -> set[str]:
    """What a file's header tells; of one that cannot be read, what was found until then."""
    found: set[str] = set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they quote what the header holds
        try:
            with open_inside(path, root=root, site=site) as stream:
                for kind in look(stream):
                    found.add(kind)
        except Exception:  # readers of damaged bytes raise whatever they like
            return found
    return found


def _nifti(stream: BinaryIO) -> Iterator[str]:
    from common.imaging.nifti import nibabel_header

    is_packed = stream.read(2) == b"\x1f\x8b"
    stream.seek(0)
    head = (gzip.GzipFile(fileobj=stream) if is_packed else stream).read(_MOST_HEAD)
    header = nibabel_header(head[:540])
    if header is None:
        return
    fields = ("descrip", "db_name", "aux_file", "intent_name")
    for name in fields:
        if name in header.structarr.dtype.names and _tells(header[name].item()):
            yield f"NIfTI field '{name}'"
    start = header.template_dtype.itemsize
    order = "little" if header.endianness == "<" else "big"
    rest = head[start + 4 : max(int(header.get_data_offset()), start)]
    while len(rest) >= 8:
        size, code = (int.from_bytes(rest[k : k + 4], order, signed=True) for k in (0, 4))
        content = rest[8:size] if size >= 16 else rest
        if code == 2 and size >= 16:
            yield "NIfTI extension with DICOM elements"
        elif re.search(rb"[!-~\x80-\xff]{3}", content):
            yield "NIfTI extension with text"
        rest = rest[size:] if size >= 16 else b""


def _sidecar(path: Path, root: Path, site: str) -> set[str]:
    try:
        tree = json.loads(read_text(path, _MOST_SIDECAR, root=root, site=site))
    except (DataContractError, ValueError, RecursionError):
        return set()
    known = {name.casefold(): name for name in DICOM}
    found: set[str] = set()
    nodes: list[Any] = [tree]
    for _ in range(_MOST_KEYS):
        if not nodes:
            break
        node = nodes.pop()
        if isinstance(node, list):
            nodes += node[:_MOST_KEYS]
        elif isinstance(node, dict):
            for key, value in node.items():
                name = known.get(key.casefold())
                if name and not _EMPTY.fullmatch(str(value)[:1000]):
                    found.add(f"JSON sidecar's '{name}'")
                nodes.append(value)
    return found


def _picture(stream: BinaryIO) -> Iterator[str]:
    from PIL import Image

    from common.data.photographs import FORMATS

    head = stream.read(_MOST_JPEG_HEAD)
    if head.startswith(_PNG):
        stream.seek(len(_PNG))
        yield from _png(stream)
        return
    if _is_bare_jpeg(head):
        return
    stream.seek(0)
    with Image.open(stream, formats=FORMATS) as picture:
        info = picture.info
        xmp = info.get("xmp", b"")
        if _XMP_NAMES.search(xmp if isinstance(xmp, bytes) else str(xmp).encode()):
            yield "XMP data"
        if _tells(info.get("comment", b"")):
            yield "picture's comment"
        resources = info.get("photoshop")
        if isinstance(resources, dict) and resources.get(_IPTC):
            yield "IPTC data"
        if "exif" in info or picture.format == "TIFF":
            yield from _exif(picture.getexif())


def _is_bare_jpeg(head: bytes) -> bool:
    """Whether a JPEG has neither EXIF, XMP and IPTC data nor a comment; faster than Pillow."""
    place = 2 if head.startswith(b"\xff\xd8") else len(head)
    while place + 4 <= len(head) and head[place] == 0xFF:
        marker = head[place + 1]
        if marker == 0xDA or marker in (0xE1, 0xED, 0xFE):  # pixels, or APP1, APP13, comment
            return marker == 0xDA
        place += 2 + int.from_bytes(head[place + 2 : place + 4], "big")
    return False


def _exif(exif: Any) -> Iterator[str]:
    for tags, names in ((exif, _EXIF), (exif.get_ifd(_PHOTOGRAPHS), _EXIF_OF_PHOTOGRAPHS)):
        for tag, name in names.items():
            if _tells(tags.get(tag, b"")):
                yield f"EXIF field '{name}'"
    if any(tag != _GPS_VERSION for tag in exif.get_ifd(_GPS)):
        yield "EXIF position (GPS)"
    xmp = exif.get(_XMP, b"")
    if _XMP_NAMES.search(xmp if isinstance(xmp, bytes) else str(xmp).encode()):
        yield "XMP data"


def _png(stream: BinaryIO) -> Iterator[str]:
    """Texts and EXIF of a PNG, before its pixels and behind them; other chunks are passed over."""
    for _ in range(_MOST_CHUNKS):
        start = stream.read(8)
        length, kind = int.from_bytes(start[:4], "big"), start[4:]
        if len(start) < 8 or kind == b"IEND":
            return
        after = stream.tell() + length + 4  # behind the checksum
        if kind in (b"tEXt", b"zTXt", b"iTXt", b"eXIf"):
            content = stream.read(min(length, _MOST_CHUNK))
            yield from _png_exif(content) if kind == b"eXIf" else _png_text(kind, content)
        stream.seek(after)


def _png_exif(content: bytes) -> Iterator[str]:
    from PIL import Image

    exif = Image.Exif()
    exif.load(content if content.startswith(b"Exif") else b"Exif\0\0" + content)
    yield from _exif(exif)


def _png_text(kind: bytes, content: bytes) -> Iterator[str]:
    raw, _, value = content.partition(b"\0")
    name = raw.decode("latin-1")
    if kind == b"zTXt" or (kind == b"iTXt" and value[:1] == b"\1"):
        packed = value[1:] if kind == b"zTXt" else value[2:].split(b"\0", 2)[-1]
        try:
            value = zlib.decompressobj().decompress(packed, _MOST_CHUNK)
        except zlib.error:
            value = packed
    elif kind == b"iTXt":
        value = value[2:].split(b"\0", 2)[-1]
    if name == "XML:com.adobe.xmp":
        if _XMP_NAMES.search(value):
            yield "XMP data"
    elif _PNG_OF_PROGRAMS.fullmatch(name):
        if name == "Software" and looks_like(value.decode("utf-8", "replace")):
            yield "PNG text 'Software'"
    elif _tells(value):
        yield f"PNG text '{name}'" if name in _PNG_TEXT else "PNG text of a name of its own"


def _dicom(stream: BinaryIO) -> Iterator[str]:
    from common.data.dicom_files import read_header, text

    wanted = ("Rows", "Columns", "BitsAllocated", "NumberOfFrames")
    header = read_header(stream, (*wanted, *DICOM, _BURNED_IN, "PatientIdentityRemoved"))
    if text(header, _BURNED_IN).upper() == "YES":
        yield "DICOM: text burned into the pixels"
    is_removed = text(header, "PatientIdentityRemoved").upper() == "YES"
    for name in DICOM:
        if name not in header:
            continue
        told = text(header, name) if header[name].VR != "SQ" else "items" * len(header[name].value)
        if is_removed and name in _PSEUDONYMS:
            told = told if looks_like(told, of_person=True) else ""
        if not _EMPTY.fullmatch(told):
            yield f"DICOM element '{name}'"


def _tells(value: object) -> bool:
    """Whether a header's free text says more than which program or camera wrote it."""
    if isinstance(value, bytes):
        for code in (b"ASCII\0\0\0", b"UNICODE\0"):
            value = value.removeprefix(code)
        value = value.replace(b"\0", b"").decode("utf-8", "replace")
    text = " ".join(str(value)[:500].split())
    return not (_EMPTY.fullmatch(text) or _SOFTWARE.fullmatch(text))
