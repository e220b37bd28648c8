"""What looks as if it named a person: in names of files, people and groups, and in tables' headers.

All of it is a guess, made to warn whoever holds the data, who alone can tell. What was found is
told by its kind and by a way to find it, and never repeated: :func:`shown` hides a name that looks
like a person's. Of headers see `common.data.identity_headers`.

A date counts wherever it stands alone, but for that of a session (``ses-20200101``), which BIDS
recommends and which is one of the scan. A person is told from a number by a given name beside
another word, or by letters that English lacks, and not by every word: hospitals, parts of the body
and devices are words, too.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import itertools
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from common.data.tables import LONGEST_LINE
from common.errors import DataContractError
from common.site_files import open_inside, plain

PERSON, DATE, MAIL, NUMBER = (
    "what looks like a person's name",
    "a date, which may be one of birth",
    "an e-mail address",
    "what looks like a personal number",
)
MOST_TEXT = 4096  # characters of one text that are looked at
MOST_COLUMNS = 1000  # of a table

# Of many countries, without those that are also words of anatomy, places or months.
_GIVEN_NAMES = """
aaron abdul abigail adam ahmed aisha alan albert alejandro alessandro alexander alexandra alice
alina ali amelia amir amy ana anastasia andre andrea andreas andrew andrzej angela anja anke anna
anne annette antje anton antonio arthur astrid barbara beatrice benjamin bernd bernhard birgit
bjorn bruno camille carla carlos carmen caroline catherine charles chiara christian christina
christine christopher claire clara claudia claus cristina daniel daniela david deborah dennis
diana dieter dimitri dirk dmitri dominik donald donna doris dorothy edward ekaterina elena
elisabeth elizabeth elke ella emil emily emma eric erik erika ernst eva fabian fatima felix
fernando francesca francesco francois frank franz fritz gabriel gabriele george georg gerd gerhard
giovanni giulia giuseppe greta gunter gustav hannah hans harald heike heinrich heinz helen helena
helga henrik henry herbert hermann hiroshi holger horst ibrahim ines ingrid irina isabel isabella
ivan jacob jakob james jan jana jane janet javier jean jennifer jens jessica joachim joan joanna
joao johan johann johannes john jonas jonathan jorg jorge jose joseph joshua juan judith julia
julian jurgen kai karen karin karl katarzyna katharina katherine kathrin katja keiko kenji kevin
klaus konrad krzysztof kumar larissa lars laura lea lena leon leonie linda lisa lorenzo louis
louise luca lucas lucia ludwig luis luisa lukas magdalena malgorzata manfred manuel marco marek
margaret maria marie marina mario marion markus marta martha martin martina mary mateo matthew
matthias maximilian mehmet melanie mia michael michel michelle miguel mohamed mohammad mohammed
monica monika muhammad mustafa nadia nadine natalia natalie nicholas nicola nicole niklas nils
nina noah norbert oleg olga oliver olivia oscar otto pablo pamela patricia patrick paul paula
pavel pedro peter petra philip philipp pierre pilar piotr rachel rainer ralf raul rebecca renate
ricardo richard rita robert roberto roland rolf rosa ruth sabine samantha samuel sandra sara sarah
sebastian sergei sergey silke silvia simon simone sofia sonja sophia sophie stefan stefanie
stephan stephanie stephen steven susan susanne svetlana sven sylvia tanja tatiana teresa theodor
theresa thomas tim timothy tobias tomasz torsten ulrich ulrike ursula ute uwe valentina vera
veronika viktor vincent vladimir waltraud walter werner wilhelm william wolfgang xavier yasmin
yuki yusuf zbigniew zoe
"""
_GIVEN = frozenset(_GIVEN_NAMES.split())
# Beside a given name or another word, these are no surname.
_USUAL_WORDS = """
abdomen acq age axial back baseline benign bold brain breast case center centre chest class clinic
control contrast coronal cor dataset derm eye exam face female first flair followup foot frame
frontal group hand head healthy heart hospital image images img index knee lateral left lesion
lower lung male malignant mask mel mole mri nevus norm normal number patient pat person photo pic
picture post pre proband probe retina right sag sagittal sample scan second ses session site skin
slice spine split st study sub subject test train upper val view visit volume wrist
"""
_WORDS = frozenset(_USUAL_WORDS.split())

_CAMEL = re.compile(r"(?<=[a-zß-öø-ÿ])(?=[A-ZÀ-ÖØ-Þ])")
_LETTERS = re.compile(r"[^\W\d_]{2,}")
_BETWEEN = re.compile(r"[\s_.,^+-]{1,3}")
_MAIL = re.compile(r"[\w.+-]{1,64}@[\w-]{1,64}\.\w")
_NUMBER = re.compile(r"(?<!\d)(?:\d{3}-\d{2}-\d{4}|(\d{6})[-+]\d{4})(?!\d)")
_DATES = re.compile(
    r"(?<!\d)(?:(?P<y>\d{4})(?P<s>[-_./ ]?)(?P<m>\d\d)(?P=s)(?P<d>\d\d)"
    r"|(?P<a>\d\d?)(?P<t>[-_./ ])(?P<b>\d\d?)(?P=t)(?P<z>\d{4}))(?!\d)"
)
_UID = re.compile(r"\d+(?:\.\d+){4,}")  # of DICOM
_PREFIX = re.compile(r"(?<![A-Za-z0-9])(?:sub|ses)-")
_ENDING = re.compile(
    r"\.(?:nii(?:\.gz)?|png|jpe?g|tiff?|bmp|webp|dcm|dicom|ima|json|[ct]sv)$", re.IGNORECASE
)
_SESSION = re.compile(r"(?<![A-Za-z0-9])ses-[A-Za-z0-9.-]+")


def looks_like(text: str, *, of_person: bool = False) -> str | None:
    """Kind of identity that a name or short text seems to hold, or None.

    ``of_person``: the text stands for a person, as a number or a pseudonym should. Then two words
    without a digit are a name, whatever they are.
    """
    text = unicodedata.normalize("NFC", text[:MOST_TEXT])
    if _MAIL.search(text):
        return MAIL
    if any(not found[1] or _is_date_of_six(found[1]) for found in _NUMBER.finditer(text)):
        return NUMBER
    if _holds_date(_UID.sub(" ", _SESSION.sub(" ", text))):
        return DATE
    return PERSON if _names_person(text, of_person) else None


@functools.lru_cache(maxsize=2**16)  # the check asks several times of each file
def in_path(file: str) -> frozenset[str]:
    """Kinds of identities in a path's folders and name."""
    *folders, name = PurePosixPath(file).parts or [""]
    parts = [*folders, _ENDING.sub("", name)]
    found = (looks_like(part, of_person=part.startswith("sub-")) for part in parts)
    return frozenset(kind for kind in found if kind)


def shown(file: str, number: int, what: str = "file") -> str:
    """Path or name for a message, or, where it seems to name somebody, only its number."""
    hidden = looks_like(file, of_person=True) if what == "person" else in_path(file)
    return f"{what} no. {number} by name (name not shown)" if hidden else plain(file)


def conceal(text: str, *values: str) -> str:
    """Message without those of its values that seem to hold an identity."""
    for value in values:
        if value and (looks_like(value) or in_path(value.strip("'"))):
            text = text.replace(value, "(not shown)")
    return text


def in_table(root: Path, name: str, *, site: str) -> Iterator[tuple[str, set[str]]]:
    """Columns of a site's table that identify people: where each is, and its kind.

    A table that cannot be opened has none: whether it can be used is for others to say.
    """
    with contextlib.suppress(DataContractError, OSError):
        with open_inside(root / name, root=root, site=site) as stream:
            line = stream.readline(LONGEST_LINE).decode("utf-8", "replace")
        for number, kind in in_columns(line):
            yield f"column {number} of {plain(name)}", {kind}


def in_columns(line: str) -> Iterator[tuple[int, str]]:
    """Columns of a table's first line whose names say that they identify people.

    Yields
    ------
    number : int
        Of the column, from 1.
    kind : str
    """
    cells = max((line.split(mark) for mark in ",;\t"), key=len)
    for number, cell in enumerate(cells[:MOST_COLUMNS], 1):
        # As words with blanks between and around: " patient name ".
        words = re.sub(r"[\W_]+", " ", _CAMEL.sub(" ", cell.strip(" \"'\ufeff\r\n")))
        words = f" {_fold(words)} "
        for kind, pattern in _COLUMNS.items():
            if pattern.search(words):
                yield number, kind
                break


@dataclass(frozen=True)
class Identities:
    """Where one site's data seem to identify people, in one way.

    Parameters
    ----------
    kind : str
        What was found where; nothing that was read from the data.
    n : int
        How many files, people, groups or columns.
    where : list of str
        Each, by name or, where the name is what was found, by number.
    """

    kind: str
    n: int
    where: list[str] = field(default_factory=list)


class Tally:
    """Collects what is found at one site."""

    def __init__(self) -> None:
        self._found: dict[str, dict[str, None]] = {}

    def add(self, kinds: Iterable[str], where: str) -> None:
        """Note kinds that were found in one file, or of one person, group or column."""
        for kind in kinds:
            self._found.setdefault(kind, {})[where] = None

    def result(self) -> list[Identities]:
        """By kind, sorted."""
        return [Identities(kind, len(told), [*told]) for kind, told in sorted(self._found.items())]


def _fold(text: str) -> str:
    """Text in small letters without accents, ß as ss."""
    apart = unicodedata.normalize("NFD", text.casefold())
    return "".join(c for c in apart if not unicodedata.combining(c))


def _names_person(text: str, of_person: bool) -> bool:
    if re.search(r"[^\W\d_]\^", text):  # DICOM's form of a name
        return True
    if any(c.isalpha() and not c.isascii() for c in text):
        return True
    apart = _CAMEL.sub(" ", _PREFIX.sub("", text))
    found = list(_LETTERS.finditer(apart))
    told = [_fold(word[0]) for word in found]
    if len(told) == 1 and len(told[0]) > 3 and told[0] in _GIVEN:
        return True
    if of_person and len(told) > 1 and not re.search(r"\d", text) and not _WORDS & {*told}:
        return all(len(word) > 2 for word in told)
    for k, both in enumerate(itertools.pairwise(told)):
        between = apart[found[k].end() : found[k + 1].start()]
        if _BETWEEN.fullmatch(between) and _GIVEN & {*both} and not _WORDS & {*both}:
            return True
    return False


def _holds_date(text: str) -> bool:
    return any(
        _is_date(*(found[key] for key in keys))
        for found in _DATES.finditer(text)
        for keys in (("y", "m", "d"), ("z", "b", "a"), ("z", "a", "b"))
        if found[keys[0]]
    )


def _is_date(year: str, month: str, day: str) -> bool:
    try:
        return 1900 <= datetime.date(int(year), int(month), int(day)).year <= 2100
    except ValueError:
        return False


def _is_date_of_six(digits: str) -> bool:
    a, b, c = digits[:2], digits[2:4], digits[4:]
    return _is_date("2000", b, a) or _is_date("2000", b, c)


def _words(text: str) -> re.Pattern[str]:
    return re.compile(f" (?:{text}) ")


# By kind; searched in names of columns as small words without accents, with blanks around each.
_COLUMNS = {
    "a column of names": _words(
        r"(?:patient|person|participant|subject|full|first|last|given|family|birth|maiden|middle|"
        r"physician|doctor|operator|mother|father)s? ?names?|surnames?|forename|vornamen?|"
        r"nachnamen?|familiennamen?|geburtsnamen?|patientennamen?|prenom|nom|nombres?|apellidos?|"
        r"cognome|initials|physician|arzt|(?<=^ )names?(?= $)"
    ),
    "a column of dates of birth": _words(
        r"(?:date of )?birth(?: ?(?:date|day|year|place))?(?! (?:weight|order|gewicht))|birthday|"
        r"birthdate|dob|geb|geburtsdatum|geboren(?: am)?|geburtstag|date de naissance|naissance|"
        r"fecha de nacimiento|nacimiento"
    ),
    "a column of addresses": _words(
        r"(?:home |postal |street )?address(?:es)?|street|zip(?: ?code)?|post(?:al)? ?code|plz|"
        r"strasse|anschrift|adresse|wohnort|direccion"
    ),
    "a column of numbers of insurance or records": _words(
        r"insurance(?: \w+)?|mrn|ssn|social security(?: \w+)?|medical record(?: \w+)?|"
        r"(?:nhs|cpr|hospital) (?:number|no|id|nr)|kvnr|krankenkasse|"
        r"versichert(?:en|e)?\w*|versicherung\w*|accession(?: ?(?:number|no))?"
    ),
    "a column of telephone numbers": _words(r"(?:tele|mobile ?)?phones?(?: \w+)?|telefon\w*|handy"),
    "a column of e-mail addresses": _words(r"e ?mail(?: ?address)?|mail"),
}
