"""A site's images under a study: whatever their storage, tasks see one kind of data set."""

from __future__ import annotations

import shutil
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from common.data import readers
from common.data.image_table import UNKNOWN
from common.data.readers.bids import read_volume
from common.data.site_data import open_split, read_table, reader_of, storages
from common.errors import ConfigError, DataContractError
from common.imaging.splits import SPLITS
from common.studies.study import Study, read_study
from common.tasks.task import SiteContext, load_task, read_run_config, roster, survey

pytestmark = pytest.mark.usefixtures("one_thread")

# A storage that fedscan does not come with: one array of all of a hospital's images, and a table.
READER = '''
"""Storage ``arrays``: images in one .npy file, of which a table's rows are the descriptions."""
import numpy as np
from common.data.dataset import InMemory
from common.data.image_table import read_image_table as read_table

class Rows(InMemory):
    """All of them could be read."""
    @property
    def rows(self):
        return np.arange(len(self))

def open_images(table, rows, study, *, name, size, heights_mm, cache):
    everything = np.load(table.root / "images.npy", mmap_mode="r", allow_pickle=False)
    numbers = [int(table.files[row].rpartition("/")[2]) for row in rows]
    return Rows(everything[numbers])
'''
OF_ARRAYS = """
name = "discs"
[images]
storage = "arrays"
table = "rows.csv"
file = "row"
channels = 3
size = 16
[label]
column = "colour"
classes = ["red", "green", "blue"]
[groups]
person = "who"
"""
# The fourth study of the issue: volumes with a label of four classes, from a text alone.
GRADES = """
name = "atrophy"
[images]
storage = "bids"
channels = 1
size = 16
[label]
column = "grade"
classes = { none = ["0"], mild = ["1"], moderate = ["2"], severe = ["3"] }
positive = "severe"
[groups]
also = ["family"]
[generator]
conditions = ["grade", "hand", "site"]
values.hand = ["left", "right"]
"""
SHORT = {
    "data.size": 16,
    "run.rounds": 1,
    "training.local-steps": 3,
    "training.batch-size": 4,
    "training.augment": "none",
}


def place(site: str) -> SiteContext:
    return SiteContext(site, (site,), torch.device("cpu"))


# A storage of one's own


@pytest.fixture
def arrays_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A hospital whose storage is one file in a folder of readers."""
    more = tmp_path / "readers"
    more.mkdir()
    (more / "arrays.py").write_text(READER)
    monkeypatch.setattr(readers, "__path__", [*readers.__path__, str(more)])
    root = tmp_path / "north"
    root.mkdir()
    draws, colours = np.random.default_rng(0), ("red", "green", "blue")
    images = draws.integers(0, 90, (30, 3, 16, 16), dtype=np.uint8)
    lines = ["row,colour,who"]
    for k, image in enumerate(images):
        image[k % 3, 4:12, 4:12] += 150
        (root / str(k)).touch()  # a table's files are there
        lines.append(f"{k},{colours[k % 3]},p{k}")
    np.save(root / "images.npy", images)
    (root / "rows.csv").write_text("\n".join(lines) + "\n")
    yield root
    sys.modules.pop(f"{readers.__name__}.arrays", None)


def test_a_reader_in_one_file_is_a_storage_and_a_task_trains_with_it(
    arrays_storage: Path, tmp_path: Path
) -> None:
    config = read_run_config(
        SHORT
        | {
            "study": OF_ARRAYS,
            "model.classifier": "gan-features",
            "model.gan-changes": "resolution=16 channel-base=128 channel-max=8",
            "training.local-steps": 60,
            "training.batch-size": 9,
            "training.learning-rate": 0.01,
        }
    )
    assert "arrays" in storages()
    assert survey("north", arrays_storage, config)["n_train"] == 18
    task = load_task("classification")
    data = task.open_split("north", arrays_storage, "train", config, tmp_path)
    assert (len(data), data.shape) == (18, (3, 16, 16))
    model = task.build_model(config, place("north"))
    task.fit(model, data, config, place=place("north"), round_number=1, private={})
    test = task.open_split("north", arrays_storage, "test", config, tmp_path)
    found = model(torch.from_numpy(test.images())).argmax(1).numpy()
    assert (found == test.labels).mean() > 0.8


@pytest.mark.parametrize("storage", ["zip", "site_data", "__init__"])
def test_a_storage_without_a_reader_is_refused_with_those_there_are(storage: str) -> None:
    text = OF_ARRAYS.replace('"arrays"', f'"{storage}"')
    with pytest.raises(ConfigError, match=r"bids, .*table|a module of common/data/readers"):
        read_run_config({"study": text})


def test_every_reader_has_the_two_functions() -> None:
    for storage in storages():
        images = {"storage": storage, "channels": 1}
        images |= {} if storage == "bids" else {"table": "t.csv", "file": "f"}
        label = {"column": "x", "classes": ["a", "b"]}
        reader = reader_of(Study.from_mapping({"name": "any", "images": images, "label": label}))
        assert callable(reader.read_table) and callable(reader.open_images)
        assert callable(reader.read_image)


# Volumes with a label of one's own


@pytest.fixture
def graded(tiny_cohort: Path, tmp_path: Path):
    """Write the hospital's twelve scans under a table of grades, families and hands."""

    def write(rows: list[tuple[str, str, str]], *, split: bool = False) -> Path:
        root = tmp_path / "north"
        shutil.copytree(tiny_cohort / "north", root)
        names = sorted(path.name for path in root.glob("sub-*"))
        header = ["participant_id", "grade", "family", "hand", *(["split"] if split else [])]
        lines = ["\t".join(header)]
        for k, (name, row) in enumerate(zip(names, rows, strict=False)):
            lines.append("\t".join([name, *row, *([SPLITS[k % 3]] if split else [])]))
        (root / "participants.tsv").write_text("\n".join(lines) + "\n")
        return root

    return write


EVERYBODY = [(str(k % 4), "n/a", ("left", "Right", "")[k % 3]) for k in range(12)]


def test_volumes_with_four_classes_train_from_a_studys_text_alone(
    graded, session_cache: Path
) -> None:
    root, config = graded(EVERYBODY), read_run_config(SHORT | {"study": GRADES})
    task = load_task("classification")
    counts = survey("north", root, config)
    assert counts == {"n_train": 4, "n_val": 4, "n_test": 4, "left_out": 0}
    assert {label for _, label, _ in roster("north", root, config)} == {0, 1, 2, 3}
    splits = {s: task.open_split("north", root, s, config, session_cache) for s in SPLITS}
    assert splits["train"].shape == (1, 16, 16, 16)
    assert sorted(splits["train"].labels) == [0, 1, 2, 3]
    model = task.build_model(config, place("north"))
    done = task.fit(
        model, splits["train"], config, place=place("north"), round_number=1, private={}
    )
    assert np.isfinite(done.metrics["loss"])
    released = task.shared_state(model, config)
    found = task.evaluate(released, splits.__getitem__, "test", config, place=place("north"))
    assert found.count == 4
    assert {"recall.severe", "auroc.none", "balanced_accuracy"} <= found.metrics.keys()


def test_a_generator_is_told_what_the_table_tells_and_no_more(graded, tmp_path: Path) -> None:
    study, root = read_study(GRADES), graded(EVERYBODY)
    data = open_split(study, "north", root, "train", size=16, cache=tmp_path)
    table = read_table(study, "north", root)
    assert table.conditions.shape == (12, 2) and (table.conditions[:, 1] == UNKNOWN).sum() == 4
    grades = study.label.classes.names
    rows = table.rows("train")
    for person, label, told, row in zip(
        data.persons, data.labels, data.conditions, rows, strict=True
    ):
        assert person == table.persons[row]
        hand = {0: {"hand": "left"}, 1: {"hand": "right"}, UNKNOWN: {}}[
            int(table.conditions[row, 1])
        ]
        assert told == {"grade": grades[label], "site": "north", **hand}


def test_families_never_straddle_splits_and_strangers_are_not_joined(graded) -> None:
    families = ("one", "one", "two", "two", "n/a", "NaN", "unknown", "", "three", "three", "x", "y")
    rows = [("0", family, "left") for family in families]
    table = read_table(read_study(GRADES), "north", graded(rows))
    homes, groups = defaultdict(set), defaultdict(set)
    for family, split, group in zip(families, table.splits, table.groups, strict=True):
        homes[family].add(str(split))
        groups[family].add(int(group))
    for family in ("one", "two", "three"):
        assert len(homes[family]) == len(groups[family]) == 1
    assert len(np.unique(table.groups)) == 9  # who names no family is alone
    assert set(table.splits.tolist()) == set(SPLITS)


def test_a_split_that_the_table_gives_is_kept_even_where_it_parts_a_family(graded) -> None:
    rows = [("0", "one", "left")] * 12
    table = read_table(read_study(GRADES), "north", graded(rows, split=True))
    assert table.splits.tolist() == list(SPLITS) * 4
    assert table.split_given and len(np.unique(table.groups)) == 1


def test_missing_labels_and_scans_are_counted_and_left_out(graded) -> None:
    rows = [(("n/a", "", "0", "1")[k % 4], "n/a", "left") for k in range(12)]
    root, config = graded(rows), read_run_config(SHORT | {"study": GRADES})
    table = read_table(config.read_study(), "north", root)
    assert table.left_out == {"no label": 6}
    assert set(table.labels.tolist()) == {0, 1}
    name = table.files[0]
    (root / name).unlink()
    table = read_table(config.read_study(), "north", root)
    assert table.left_out == {"no label": 6, "no scan": 1}
    assert name not in table.files and len(table) == 5


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([("4", "n/a", "left")] * 12, "unknown value"),
        ([("0", "n/a", "both")] * 12, "'hand' holds unknown values"),
    ],
)
def test_a_value_that_is_not_understood_refuses_the_table_and_is_not_told(
    rows, words: str, graded
) -> None:
    with pytest.raises(DataContractError, match=words) as caught:
        read_table(read_study(GRADES), "north", graded(rows))
    assert "both" not in caught.value.public and "sub-" not in caught.value.public


def test_a_column_of_the_study_that_is_missing_is_named(graded) -> None:
    text = GRADES.replace('also = ["family"]', 'also = ["household"]')
    with pytest.raises(DataContractError, match="no column of the study 'household'"):
        read_table(read_study(text), "north", graded(EVERYBODY))


def test_no_file_of_another_split_is_opened(graded, tmp_path: Path) -> None:
    study, root = read_study(GRADES), graded(EVERYBODY)
    table = read_table(study, "north", root)
    for row in np.flatnonzero(table.splits != "val"):
        (root / table.files[row]).write_bytes(b"no scan")
    data = open_split(study, "north", root, "val", size=16, cache=tmp_path / "cache")
    assert len(data) == 4
    with pytest.raises(DataContractError):
        open_split(study, "north", root, "test", size=16, cache=tmp_path / "cache")


def test_a_bad_scan_is_left_out_and_the_others_keep_their_labels(graded, tmp_path: Path) -> None:
    study, root = read_study(GRADES), graded(EVERYBODY)
    whole = open_split(study, "north", root, "train", size=16, cache=tmp_path / "a")
    table = read_table(study, "north", root)
    bad = table.rows("train")[1]
    (root / table.files[bad]).write_bytes(b"no scan")
    data = open_split(study, "north", root, "train", size=16, cache=tmp_path / "b")
    kept = [k for k, name in enumerate(whole.persons) if name != table.persons[bad]]
    expected = whole.subset(kept)
    assert data.persons == expected.persons
    np.testing.assert_array_equal(data.labels, expected.labels)
    np.testing.assert_array_equal(data.images(), expected.images())


def test_stacks_are_the_slices_of_the_volumes_lowest_first(graded, tmp_path: Path) -> None:
    study, root = read_study(GRADES), graded(EVERYBODY)
    where = ("north", root, "train")
    heights = (-6.75, 6.75)  # of two planes of the cube, half a voxel beside its centre
    stacks = open_split(study, *where, size=16, heights_mm=heights, cache=tmp_path)
    assert stacks.shape == (1, 2, 16, 16)
    files = [root / f"{name}/anat/{name}_T1w.nii.gz" for name in stacks.persons]
    cubes = np.stack([read_volume(file, size=16, root=root, site="north") for file in files])
    planes = cubes[:, :, ::-1, 7:9].transpose(0, 3, 2, 1)  # level, row, column
    np.testing.assert_allclose(stacks.images()[:, 0], planes, atol=2e-3)
    whole = open_split(study, *where, size=16, cache=tmp_path)
    assert stacks.persons == whole.persons
    np.testing.assert_array_equal(stacks.labels, whole.labels)


def test_a_given_split_that_parts_persons_is_logged_once_in_numbers_alone(
    arrays_storage: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [f"{k},{('red', 'green', 'blue')[k % 3]},p{k}" for k in range(12)]
    splits = [SPLITS[k % 3] for k in range(12)]
    whole = arrays_storage / "rows.csv"
    study = read_study(OF_ARRAYS)
    for site, parts in (("whole", False), ("parted", True)):
        told = [row.replace("p4", "p3") if parts else row for row in rows]
        lines = [f"{row},{split}" for row, split in zip(told, splits, strict=True)]
        whole.write_text("\n".join(["row,colour,who,split", *lines]) + "\n")
        for split in SPLITS:
            open_split(study, site, arrays_storage, split, size=16, cache=tmp_path)
    (record,) = caplog.records
    assert record.name == "flwr.fedscan" and record.levelname == "WARNING"
    assert record.getMessage().startswith(
        "site 'parted': the given split parts 1 group of one person or thing each "
        "(images: train 1, val 1)"
    )
    assert "p3" not in caplog.text
