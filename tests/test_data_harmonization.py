"""Harmonized intensities: one increasing map a site, from its own training images alone."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny import dataset, run_config

from common.data import cache, harmonization
from common.data.dataset import Dataset, InMemory, pool
from common.data.harmonization import DECILES, GREY, HEADS, SKIN, STEP, Harmonized, learn_map
from common.data.site_data import open_planes, open_split, read_table
from common.errors import DataContractError
from common.imaging.prepare import HEAD
from common.imaging.slices import LEVELS_MM
from common.studies.study import Study, load_study
from common.tasks.task import load_task

BRAINS, SKINS = load_study("brain-sex"), load_study("skin-lesions")
SPLITS = ("train", "val", "test")


@pytest.fixture(autouse=True)
def sure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trust files that a test has written just now, and remember no map of another test."""
    monkeypatch.setattr(cache, "_RACY_NS", -1)
    monkeypatch.setattr(harmonization, "_known", {})


def anatomies(count: int, channels: int, *, seed: int = 0) -> np.ndarray:
    """Pictures of 20 pixels a side, of which each has much the same distribution."""
    draws = np.random.default_rng(seed)
    levels = np.linspace(0.15, 0.9, 400)
    images = np.stack([draws.permutation(levels) for _ in range(count * channels)])
    images += draws.normal(0, 0.01, (count * channels, 1))
    return images.reshape(count, channels, 20, 20).astype(np.float32)


def heads(count: int, *, seed: int = 0) -> np.ndarray:
    """Cubes of 12 voxels a side, of which a border of two is air."""
    inside = anatomies(count, 2, seed=seed).reshape(count, 1, -1)[..., : 8**3]
    return np.pad(inside.reshape(count, 1, 8, 8, 8), [(0, 0)] * 2 + [(2, 2)] * 3)


def mapped(images: np.ndarray, train: np.ndarray, *, volumes: bool = False) -> np.ndarray:
    learned = learn_map(InMemory(train), site="north", volumes=volumes)
    return Harmonized(InMemory(images), learned).take(np.arange(len(images)))


# The map


@pytest.mark.parametrize(
    ("images", "volumes", "scale"),
    [(anatomies(5, 3), False, SKIN), (anatomies(5, 1), False, GREY), (heads(5), True, HEADS)],
    ids=["colour", "grey", "heads"],
)
def test_mean_landmarks_become_the_standard_scale(
    images: np.ndarray, volumes: bool, scale: tuple
) -> None:
    learned = learn_map(InMemory(images), site="north", volumes=volumes)
    for channel, standard in enumerate(scale):
        each = [image[channel][image[channel] > (HEAD if volumes else 0)] for image in images]
        landmarks = np.mean([np.percentile(values, DECILES) for values in each], axis=0)
        probe = np.zeros((len(landmarks), len(scale)))
        probe[:, channel] = landmarks
        np.testing.assert_allclose(learned(probe)[:, channel], standard, atol=1e-6)


@given(st.lists(st.floats(0, 1), min_size=11, max_size=11).map(sorted), st.booleans())
def test_the_map_is_increasing_within_bounds_and_keeps_the_ends(
    intensities: list[float], volumes: bool
) -> None:
    image = np.array(intensities).reshape(1, 1, 11)  # its deciles are its inner pixels
    try:
        learned = learn_map(InMemory(image), site="north", volumes=volumes)
    except DataContractError:
        return  # without contrast
    values = np.arange(256, dtype=np.uint8)
    halves = np.linspace(0, 1, 999, dtype=np.float16)
    for stored, strict in ((values, True), (halves, False), (halves.astype(np.float32), False)):
        found = learned(stored[:, None])[:, 0]
        assert found.dtype == np.float32
        assert (found[0], found[-1]) == (0, 1)
        assert (np.diff(found) > 0).all() if strict else (np.diff(found) >= 0).all()
    np.testing.assert_allclose(learned(halves[:, None]), learned(halves[:, None].astype(float)))


@pytest.mark.parametrize("kind", [np.uint8, np.float16, np.float32])
def test_images_are_mapped_alike_however_they_are_stored(kind: type) -> None:
    images = anatomies(4, 3)
    stored = np.rint(images * 255).astype(np.uint8) if kind is np.uint8 else images.astype(kind)
    np.testing.assert_allclose(mapped(stored, images), mapped(images, images), atol=0.02)


@pytest.mark.parametrize(
    "curve",
    [
        lambda x: x**0.6,
        lambda x: x**1.4,
        lambda x: 0.1 + 0.7 * x,
        lambda x: x + 0.12 * np.sin(2 * np.pi * x),
    ],
    ids=["brighter", "darker", "flatter", "steeper"],
)
@pytest.mark.parametrize("volumes", [True, False], ids=["heads", "pictures"])
def test_scanners_that_differ_by_a_curve_give_nearly_the_same_images(
    curve: Callable, volumes: bool
) -> None:
    train, test = (
        (heads(6), heads(3, seed=1)) if volumes else (anatomies(6, 3), anatomies(3, 3, seed=1))
    )
    train_2, test_2 = (np.where(images > 0, curve(images), 0) for images in (train, test))
    one = mapped(test, train, volumes=volumes)
    other = mapped(test_2, train_2, volumes=volumes)
    before = np.abs(test - test_2)[test > 0].mean()
    after = np.abs(one - other)[test > 0].mean()
    assert after < 0.015 < 0.05 < before


def test_what_is_no_part_of_a_head_stays_as_it_is() -> None:
    train = heads(4)
    image = heads(1, seed=1)
    image[0, 0, 0] = np.linspace(0, 0.98 * HEAD, 12)
    found = mapped(image, train**2, volumes=True)
    outside = image <= HEAD
    np.testing.assert_allclose(found[outside], image[outside], atol=1e-7)
    assert (found[image == 0] == 0).all()
    assert ((found > HEAD) == (image > HEAD)).all()


# Sites with little to learn from


@pytest.mark.parametrize("volumes", [True, False])
def test_constant_images_are_refused_with_the_way_out(volumes: bool) -> None:
    constant = np.full((3, 1, 4, 4), 0.6, np.float32) * np.linspace(0.5, 1, 3)[:, None, None, None]
    with pytest.raises(DataContractError, match=r"without contrast.*data\.harmonize to 'none'"):
        learn_map(InMemory(constant), site="north", volumes=volumes)


def test_volumes_without_a_head_are_refused() -> None:
    with pytest.raises(DataContractError, match="without contrast"):
        learn_map(InMemory(np.zeros((3, 1, 4, 4, 4), np.float16)), site="north", volumes=True)


def test_a_constant_image_among_others_is_mapped_as_they_are() -> None:
    train = anatomies(8, 1)
    train[3] = 0.5
    found = mapped(train, train)
    assert np.isfinite(found).all()
    assert np.ptp(found[3]) == 0 and 0 < found[3].mean() < 1


def test_one_image_is_enough() -> None:
    image = anatomies(1, 3)
    found = np.percentile(mapped(image, image), DECILES, axis=(2, 3))[:, 0].T
    np.testing.assert_allclose(found, SKIN, atol=2e-3)


@pytest.mark.parametrize("colour", [0.0, 0.5])
def test_the_noise_of_an_area_of_one_colour_does_not_become_contrast(colour: float) -> None:
    train = anatomies(5, 1)
    noise = np.random.default_rng(0).uniform(0, STEP / 2, train[:, :, :9].shape)
    train[:, :, :9] = colour + noise  # as black beside a picture that was padded: several landmarks
    assert np.ptp(mapped(train, train)[:, :, :9]) < 0.02


# At a site


@pytest.fixture(scope="module")
def skins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hospital with twelve pictures, four a split."""
    root = tmp_path_factory.mktemp("skins") / "north"
    (root / "images").mkdir(parents=True)
    lines = ["image,patient_id,lesion_id,diagnosis,split"]
    images = np.rint(anatomies(12, 3) ** 2 * 255).astype(np.uint8).transpose(0, 2, 3, 1)
    for k, image in enumerate(images):
        Image.fromarray(image).save(root / "images" / f"i{k}.jpg", quality=95)
        lines.append(f"i{k}.jpg,p{k},l{k},{('nevus', 'melanoma')[k % 2]},{SPLITS[k % 3]}")
    (root / "lesions.csv").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture(params=["volumes", "pictures"])
def site(request: pytest.FixtureRequest, tiny_cohort: Path, tmp_path: Path) -> tuple[Study, Path]:
    """A study, and a hospital's folder of the test's own."""
    study = BRAINS if request.param == "volumes" else SKINS
    source = tiny_cohort / "north" if study is BRAINS else request.getfixturevalue("skins")
    return study, Path(shutil.copytree(source, tmp_path / "north"))


def opened(site: tuple[Study, Path], split: str, harmonize: str = "landmarks", **more) -> Dataset:
    study, folder = site
    options = {"size": 16, "cache": folder.parent / "cache", "harmonize": harmonize} | more
    return open_split(study, "north", folder, split, **options)


def files(site: tuple[Study, Path], split: str) -> list[Path]:
    table = read_table(site[0], "north", site[1])
    return [table.root / table.files[row] for row in table.rows(split)]


def test_every_split_is_mapped_as_its_training_images_say(site: tuple[Study, Path]) -> None:
    train = opened(site, "train", "none").images()
    for split in SPLITS:
        data, plain = opened(site, split), opened(site, split, "none")
        expected = mapped(plain.images(), train, volumes=site[0] is BRAINS)
        np.testing.assert_allclose(data.images(), expected, atol=1e-4)
        np.testing.assert_array_equal(data.labels, plain.labels)
        assert (data.persons, data.conditions) == (plain.persons, plain.conditions)
        assert np.abs(data.images() - plain.images()).max() > 0.02


def test_generators_learn_the_slices_of_harmonized_stacks(tiny_cohort: Path, tmp_path: Path):
    where = (BRAINS, "north", tiny_cohort / "north")
    options = {"size": 16, "cache": tmp_path, "harmonize": "landmarks"}
    planes = open_planes(*where, "val", **options).images()
    stacks = open_split(*where, "val", heights_mm=LEVELS_MM, **options).images()
    np.testing.assert_array_equal(planes, stacks.reshape(-1, 1, 16, 16))
    plain = open_planes(*where, "val", **options | {"harmonize": "none"}).images()
    assert np.abs(planes - plain).max() > 0.02


@pytest.mark.parametrize("task", ["classification", "generation"])
def test_a_run_config_harmonizes_what_a_task_opens(site: tuple[Study, Path], task: str) -> None:
    changes = {"task": task, "study": site[0].name}
    changes |= {"size": 16} if task == "classification" else {"gan_changes": "resolution=16"}
    found = {}
    for value in ("none", "landmarks"):
        config = run_config({}, **changes, harmonize=value)
        again = type(config).from_flower(config.to_flower())
        assert again == config and again.data.harmonize == value
        where = ("north", site[1], "val", again, site[1].parent / "cache")
        found[value] = load_task(task).open_split(*where).images()
    assert found["none"].shape == found["landmarks"].shape
    assert np.abs(found["none"] - found["landmarks"]).max() > 0.02


def test_images_of_other_splits_do_not_change_the_map(site: tuple[Study, Path]) -> None:
    before = opened(site, "train").images()
    for path in (*files(site, "val"), *files(site, "test")):
        shutil.copy(files(site, "train")[0], path)
    harmonization._known.clear()
    np.testing.assert_array_equal(opened(site, "train").images(), before)


def test_no_test_file_is_opened_for_another_split(site: tuple[Study, Path]) -> None:
    for path in files(site, "test"):
        path.write_bytes(b"no image")
    assert len(opened(site, "train")) and len(opened(site, "val"))


def test_landmarks_are_learned_once_and_again_when_training_images_changed(
    site: tuple[Study, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    learn = harmonization._landmarks
    monkeypatch.setattr(
        harmonization, "_landmarks", lambda *args: calls.append(args) or learn(*args)
    )
    before, *_ = (opened(site, split).images() for split in ("val", "train", "test"))
    assert len(calls) == 1
    first, second, *_ = files(site, "train")
    shutil.copy(first, second)
    after = opened(site, "val").images()
    assert len(calls) == 2
    assert np.abs(after - before).max() > 0


def test_images_of_which_nobody_knows_whether_they_changed_are_learned_from_anew() -> None:
    images = anatomies(3, 1)
    first = learn_map(InMemory(images), site="north", volumes=False)
    assert learn_map(InMemory(images), site="north", volumes=False) is not first


def test_only_so_many_images_are_learned_from_and_they_are_of_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(harmonization, "MOST_IMAGES", 4)
    monkeypatch.setattr(harmonization, "_VALUES", 1000)  # two at once
    images, taken = anatomies(10, 1), []

    class Spied(InMemory):
        def take(self, index):
            taken.append(list(index))
            return super().take(index)

    learn_map(Spied(images), site="north", volumes=False)
    assert taken == [[0, 3], [6, 9]]


def test_harmonized_images_can_be_chosen_and_pooled() -> None:
    learned = learn_map(InMemory(anatomies(4, 3)), site="north", volumes=False)
    stored = np.rint(anatomies(5, 3, seed=1) * 255).astype(np.uint8)
    plain = dataset(stored)
    one = Dataset(Harmonized(plain.pixels, learned), plain.labels, plain.persons)
    both = pool([one.subset([3, 1]), plain])
    np.testing.assert_array_equal(both.take([1, 2]), [one.images()[1], plain.images()[0]])
