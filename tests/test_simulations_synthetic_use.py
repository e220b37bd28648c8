"""Synthetic people are one latent at every height; how many help is asked of validation scans."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common.config.run_config import RunConfig
from common.errors import ConfigError
from common.imaging.slices import LEVELS_MM
from common.models.stylegan2 import Generator
from common.studies.study import load_study
from common.tasks.generation_networks import architecture
from common.tasks.task import SiteContext, load_task
from common.training.classifier import predict
from common.training.gan import GanTraining
from common.training.gan_checkpoint import load_generator, save_checkpoint
from common.training.gan_presets import stylegan2
from simulations import synthetic_use
from simulations.results import USE_COLUMNS
from simulations.synthetic_use import filling, synthetic_people, use_of_synthetic

pytestmark = pytest.mark.usefixtures("one_thread")

SITES = ("island", "north")
LEVELS = len(LEVELS_MM)
TINY_GAN = "resolution=16 channel-base=64 channel-max=4 z-dim=8 w-dim=8 label-kinds=sex,height,site"
TINY = {
    "model.classifier": "slices",
    "model.gan-changes": TINY_GAN,
    "model.adapt": "none",
    "training.batch-size": 4,
    "run.rounds": 2,
    "training.local-steps": 2,
}


STUDY = load_study("brain-sex")
classification = load_task("classification")


def config(changes: dict | None = None) -> RunConfig:
    return RunConfig.from_flower(TINY | (changes or {}))


def write_gan(folder: Path, changes: str = TINY_GAN, seed: int = 0) -> Path:
    about = {"task": "generation", "model.classifier": "auto", "model.gan-changes": changes}
    settings = config({**about, "run.seed": seed})
    training = GanTraining.start(
        stylegan2(settings), architecture(settings, SITES), device=torch.device("cpu")
    )
    save_checkpoint(folder, training)
    return folder


@pytest.fixture(scope="module")
def gans(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("gans")
    return {f"{name} GAN": write_gan(root / name, seed=k) for k, name in enumerate(("a", "b"))}


@pytest.fixture(scope="module")
def generator(gans: dict[str, Path]) -> Generator:
    return load_generator(gans["a GAN"])[0]


@pytest.fixture
def folders(tiny_cohort: Path, session_cache: Path, monkeypatch) -> dict[str, Path]:
    monkeypatch.setenv("FEDSCAN_CACHE", str(session_cache))
    return {site: tiny_cohort / site for site in SITES}


# Synthetic people


def test_half_are_women_and_a_stack_is_one_latent(generator: Generator, monkeypatch) -> None:
    asked = {}

    def spy(network, rows, numbers, *, seed):
        asked["rows"], asked["numbers"] = rows, list(numbers)
        return np.full((len(rows), 1, 16, 16), 3.0, np.float32)

    monkeypatch.setattr(synthetic_use, "sample_rows", spy)
    people = synthetic_people(generator, STUDY, "north", range(6), seed=0)
    assert people.labels.tolist() == [0, 1] * 3 and people.labels.dtype == np.int64
    assert asked["numbers"] == [person for person in range(6) for _ in range(LEVELS)]
    for k, row in enumerate(asked["rows"]):
        person, level = divmod(k, LEVELS)
        assert row == {
            "sex": ("female", "male")[person % 2],
            "height": f"{LEVELS_MM[level]:g}",
            "site": "north",
        }
    assert people.shape == (1, LEVELS, 16, 16)
    assert (people.take(range(6)) == 1).all()  # what leaves the range is clipped


def test_images_are_what_the_classifier_takes(generator: Generator) -> None:
    people = synthetic_people(generator, STUDY, "north", range(4), seed=0)
    images = people.take(range(4))
    assert images.dtype == np.float32
    assert 0 <= images.min() < images.max() <= 1
    place = SiteContext("north", SITES, torch.device("cpu"))
    model = classification.build_model(config(), place)
    assert len(predict(model, people, STUDY, torch.device("cpu"))) == 4


def test_few_are_the_first_of_many_and_seeds_and_sites_differ(generator: Generator) -> None:
    many = synthetic_people(generator, STUDY, "north", range(8), seed=0).take(range(8))
    np.testing.assert_allclose(
        synthetic_people(generator, STUDY, "north", range(3), seed=0).take(range(3)),
        many[:3],
        atol=1e-6,
    )
    for site, seed in (("island", 0), ("north", 1)):
        assert not np.allclose(
            synthetic_people(generator, STUDY, site, range(8), seed=seed).take(range(8)), many
        )


@pytest.mark.parametrize(
    ("kinds", "said"),
    [("sex,height", "no labels of site"), ("none", "no labels of sex and height and site")],
)
def test_missing_kind_of_label_is_said(kinds: str, said: str, tmp_path: Path) -> None:
    plain = load_generator(write_gan(tmp_path, TINY_GAN.replace("sex,height,site", kinds)))[0]
    with pytest.raises(ConfigError, match=said) as raised:
        synthetic_people(plain, STUDY, "north", range(2), seed=0)
    assert "label-kinds=sex,height,site" in str(raised.value)


def test_unknown_site_is_said(generator: Generator) -> None:
    with pytest.raises(ConfigError, match="no site 'moon': it was trained with island, north"):
        synthetic_people(generator, STUDY, "moon", range(2), seed=0)


# Their use


@pytest.fixture
def table(folders, gans) -> pd.DataFrame:
    return use_of_synthetic(folders, gans, "island", config(), seed=3, amounts=(2, 4))


def test_rows_are_in_reading_order_and_complete(table: pd.DataFrame) -> None:
    assert list(table.columns) == USE_COLUMNS
    assert list(dict.fromkeys(table.row)) == [
        "local real only",
        "local real + a GAN",
        "local real + b GAN",
        "a GAN only",
        "b GAN only",
    ]
    assert (table.seed == 3).all() and table.value.notna().all()
    tested = table[table.metric.isin(("balanced_accuracy", "auroc"))]
    assert (tested.n == 4).all() and tested.value.between(0, 1).all()
    counts = tested.groupby("row").site.apply(lambda sites: sorted(set(sites)))
    for row, sites in counts.items():
        assert sites == (
            ["island", "north"] if row.endswith("only") and "GAN" in row else ["island"]
        )
    assert not table.duplicated(["row", "site", "metric"]).any()
    amounts = table[table.metric == "synthetic_participants"]
    assert set(amounts.row) == {"local real + a GAN", "local real + b GAN"}
    assert set(amounts.value) <= {0.0, 2.0, 4.0}


def test_same_seed_gives_the_same_table(table: pd.DataFrame, folders, gans) -> None:
    again = use_of_synthetic(folders, gans, "island", config(), seed=3, amounts=(4, 2))
    pd.testing.assert_frame_equal(again, table)


@pytest.mark.parametrize(
    ("losses", "amount"),
    [((0.7, 0.6, 0.5), 4), ((0.7, 0.5, 0.5), 2), ((0.5, 0.5, 0.6), 0), ((0.6, 0.5, 0.7), 2)],
)
def test_amount_has_the_lowest_validation_loss_and_of_equals_the_fewest(
    losses, amount: int, folders, gans, monkeypatch
) -> None:
    left = iter(losses)
    monkeypatch.setattr(synthetic_use._Trainings, "loss", lambda *_: next(left))
    one = {"a GAN": gans["a GAN"]}
    table = use_of_synthetic(folders, one, "island", config(), seed=0, amounts=(2, 4))
    chosen = table[table.metric == "synthetic_participants"]
    assert chosen.value.tolist() == [amount] and chosen.n.tolist() == [2]
    if amount == 0:  # then it is the very same classifier
        values = table[table.metric == "auroc"].set_index("row").value
        assert values["local real + a GAN"] == values["local real only"]


def test_test_scans_are_read_once_and_last_and_steps_are_the_same(
    folders, gans, monkeypatch
) -> None:
    events: list[str] = []
    load, fit = classification.open_split, classification.fit

    def spy_load(site, data_dir, split, settings, cache):
        events.append(f"{split} {site}")
        return load(site, data_dir, split, settings, cache)

    def spy_fit(model, data, settings, *, place, round_number, private):
        events.append(f"fit {round_number} of {len(data.labels)}")
        return fit(model, data, settings, place=place, round_number=round_number, private=private)

    monkeypatch.setattr(classification, "open_split", spy_load)
    monkeypatch.setattr(classification, "fit", spy_fit)
    one = {"a GAN": gans["a GAN"]}
    use_of_synthetic(folders, one, "island", config(), seed=0, amounts=(2, 4))
    assert events[:2] == ["train island", "val island"]
    assert events[-2:] == ["test island", "test north"]
    trained = events[2:-2]
    assert trained[0::2] == [f"fit 1 of {n}" for n in (2, 4, 6, 4, 4)]
    assert trained[1::2] == [f"fit 2 of {n}" for n in (2, 4, 6, 4, 4)]


def test_unfit_settings_are_refused(folders, gans) -> None:
    with pytest.raises(ConfigError, match="'small' has no use for synthetic images"):
        use_of_synthetic(
            folders,
            gans,
            "island",
            config({"model.classifier": "small", "model.gan-changes": ""}),
            seed=0,
        )
    with pytest.raises(ConfigError, match="site 'moon'"):
        use_of_synthetic(folders, gans, "moon", config(), seed=0)
    for settings in ({"model.heights": "whole-head"}, {"model.adapt": "center"}):
        with pytest.raises(ConfigError, match=f"{next(iter(settings))} = '"):
            use_of_synthetic(folders, gans, "island", config(settings), seed=0)


def test_a_generator_that_makes_no_such_people_has_no_row(
    folders, gans, tmp_path: Path, caplog
) -> None:
    one = {"a GAN": gans["a GAN"]}
    plain = write_gan(tmp_path / "plain", TINY_GAN.replace("sex,height,site", "none"))
    large = write_gan(tmp_path / "large", TINY_GAN.replace("=16", "=32"))
    some = {"plain GAN": plain, **one, "large GAN": large}
    table = use_of_synthetic(folders, some, "island", config(), seed=0, amounts=(2,))
    alone = use_of_synthetic(folders, one, "island", config(), seed=0, amounts=(2,))
    pd.testing.assert_frame_equal(table, alone)
    assert "plain GAN: the generator has no labels of sex" in caplog.text
    assert "large GAN: its images have 32 pixels" in caplog.text
    table = use_of_synthetic(folders, {}, "island", config(), seed=0)
    assert set(table.row) == {"local real only"}


@given(st.lists(st.integers(0, 3), min_size=1))
def test_filled_up_all_classes_are_as_common_as_the_commonest(labels: list[int]) -> None:
    more = [number % 4 for number in filling(np.array(labels), 4)]
    assert len(set(np.bincount(labels + more, minlength=4))) == 1


def test_a_rare_class_is_filled_up_by_people_of_that_class(folders, gans, monkeypatch) -> None:
    trained = []
    train = synthetic_use._Trainings.train
    monkeypatch.setattr(synthetic_use, "filling", lambda labels, classes: [0, 2, 4, 1])
    monkeypatch.setattr(
        synthetic_use._Trainings,
        "train",
        lambda self, data: trained.append(np.bincount(data.labels)) or train(self, data),
    )
    one = {"a GAN": gans["a GAN"]}
    table = use_of_synthetic(folders, one, "island", config(), seed=0, amounts=(2,))
    real, _, balanced, *_ = trained
    assert (balanced - real).tolist() == [3, 1]
    assert set(table[table.row == "local real balanced by a GAN"].site) == {"island"}


def test_trainings_are_counted(folders, gans, monkeypatch) -> None:
    monkeypatch.setattr(synthetic_use, "AMOUNTS", (2, 4))
    monkeypatch.setattr(synthetic_use, "filling", lambda labels, classes: [0, 2, 4, 1])
    seen = []
    train = synthetic_use._Trainings.train
    monkeypatch.setattr(
        synthetic_use._Trainings, "train", lambda *given: seen.append(1) or train(*given)
    )
    use_of_synthetic(folders, gans, "island", config(), seed=0, amounts=(2, 4))
    assert len(seen) == synthetic_use.trainings(2, 2) == 1 + 2 * (2 + 1 + 2)
