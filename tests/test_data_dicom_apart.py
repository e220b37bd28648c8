"""Work that may end its process is done in another, which may."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import dicoms
import pytest

from common.data import dicom_apart, dicom_series
from common.data.dicom_apart import apart
from common.data.dicom_files import UNDECODABLE, UnusableError


def counts(most: int) -> Iterator[bytes]:
    for number in range(most):
        yield str(number).encode()


def dies() -> Iterator[bytes]:
    yield b"not yet"
    os.abort()


def fails(error: Exception) -> Iterator[bytes]:
    yield b"not yet"
    raise error


def sleeps() -> Iterator[bytes]:
    time.sleep(60)
    yield b"at last"


def process() -> Iterator[bytes]:
    yield str(os.getpid()).encode()


@pytest.fixture(autouse=True, scope="module")
def _no_helper_is_left() -> Iterator[None]:
    yield
    dicom_apart._stop()


def test_what_is_yielded_comes_one_after_the_other_from_one_other_process():
    assert list(apart(counts, 3)) == [b"0", b"1", b"2"]
    assert [*apart(process)] == [*apart(process)] != [str(os.getpid()).encode()]


@pytest.mark.parametrize(
    ("work", "reason"),
    [
        ((dies,), UNDECODABLE),
        ((fails, UnusableError("its own words")), "its own words"),
        ((fails, ValueError("Anna Smith")), UNDECODABLE),
    ],
)
def test_a_death_or_an_error_is_a_refusal_and_the_next_work_is_done(work, reason):
    with pytest.raises(UnusableError) as refused:
        list(apart(*work))
    assert refused.value.reason == reason
    assert list(apart(counts, 1)) == [b"0"]


def test_later_work_ends_earlier_and_no_answer_is_mistaken_for_another():
    earlier = apart(counts, 3)
    assert next(earlier) == b"0"
    assert list(apart(counts, 2)) == [b"0", b"1"]
    with pytest.raises(UnusableError):
        next(earlier)


def test_what_takes_too_long_is_ended(monkeypatch):
    monkeypatch.setattr(dicom_apart, "MOST_SECONDS", 0.01)
    with pytest.raises(UnusableError):
        list(apart(sleeps))


def test_a_series_is_converted_there_as_here(tmp_path, monkeypatch):
    files = dicoms.put_series(tmp_path, dicoms.slices())
    here = dicom_series.convert_series(files, tmp_path)
    monkeypatch.setattr(dicom_series, "is_risky", lambda _: True)
    assert dicom_series.convert_series(files, tmp_path) == here
