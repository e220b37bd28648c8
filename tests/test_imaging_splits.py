"""Splits are a function of ids and labels, and hold both labels where that is possible."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.config.run_config import RunConfig
from common.errors import DataContractError
from common.imaging.splits import SPLITS, assign_splits, parse_split
from common.tasks.task import survey

LABELLED = st.dictionaries(
    st.from_regex(r"sub-[a-z0-9]{1,6}", fullmatch=True), st.integers(0, 1), max_size=60
)


@pytest.mark.parametrize(
    ("text", "split"),
    [
        ("train", "train"),
        ("val", "val"),
        ("validation", "val"),
        ("TEST ", "test"),
        ("n/a", None),
        ("", None),
    ],
)
def test_spellings_of_a_split(text, split):
    assert parse_split(text) == split


@pytest.mark.parametrize("text", ["dev", "holdout", "0", "train,test"])
def test_unknown_split_is_refused_and_says_what_is_accepted(text):
    with pytest.raises(ValueError, match="train, val"):
        parse_split(text)


@given(LABELLED, st.randoms())
def test_split_depends_on_no_order(labels, random):
    shuffled = list(labels.items())
    random.shuffle(shuffled)
    assert assign_splits(dict(shuffled)) == assign_splits(labels)


@given(LABELLED)
def test_everybody_is_in_one_split_and_three_of_a_label_reach_each(labels):
    splits = assign_splits(labels)
    assert splits.keys() == labels.keys()
    assert set(splits.values()) <= set(SPLITS)
    for label in (0, 1):
        mine = Counter(splits[name] for name in labels if labels[name] == label)
        n = mine.total()
        if n >= 3:
            assert all(mine[split] >= 1 for split in SPLITS)
        if n >= 5:
            assert mine["val"] == mine["test"]
            assert abs(mine["test"] - 0.2 * n) <= 0.5
        if n:
            assert mine["train"] >= 1


@pytest.mark.parametrize("n", [2, 3])
def test_a_site_whose_split_has_nobody_is_told_how_many_are_enough(tmp_path, n):
    table = "participant_id\tsex\n"
    for name in [f"sub-{sex}{number}" for number in range(n) for sex in "FM"]:
        table += f"{name}\t{name[4]}\n"
        (tmp_path / name / "anat").mkdir(parents=True)
        (tmp_path / name / "anat" / f"{name}_T1w.nii").touch()
    (tmp_path / "participants.tsv").write_text(table)
    config = RunConfig.from_flower({})
    if n == 3:
        assert survey("north", tmp_path, config) == {
            "n_train": 2,
            "n_val": 2,
            "n_test": 2,
            "left_out": 0,
        }
        return
    with pytest.raises(DataContractError, match="from three people of each label on"):
        survey("north", tmp_path, config)


@given(LABELLED, st.integers(0, 1))
def test_one_more_participant_moves_few_others(labels, label):
    before = assign_splits(labels)
    after = assign_splits({**labels, "sub-zzzzzzz": label})
    moved = [name for name in before if before[name] != after[name]]
    assert all(labels[name] == label for name in moved)  # strata do not touch each other
    assert len(moved) <= 3


def test_the_split_is_the_same_in_every_version():
    names = {f"sub-{i:02d}": i % 2 for i in range(10)}
    held_out = {name: split for name, split in assign_splits(names).items() if split != "train"}
    assert held_out == {"sub-00": "val", "sub-02": "test", "sub-03": "val", "sub-05": "test"}
