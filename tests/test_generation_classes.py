"""Generated images are judged class by class, and a generator may learn some classes alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import dataset, run_config

from clients.gateway.facts import facts_of_splits
from clients.policy import SIMULATED, SitePolicy
from common.data.site_data import read_table
from common.data.unlabelled import UnlabelledError
from common.disclosure import Disclosure
from common.errors import ConfigError, DataContractError
from common.evaluation.generation import judge_features
from common.evaluation.of_site import Evaluation
from common.studies.study import load_study
from common.tasks import generation_classes
from common.tasks.generation_classes import (
    MOST_IMAGES,
    OF_A_CLASS,
    of_each_class,
    some_of_each,
    variety,
)
from common.tasks.generation_quality import classes_of
from common.tasks.task import SiteContext, load_task, read_run_config

CLASSES = ("a", "b", "c")
GENERATION = {"task": "generation", "study": "skin-lesions"}
SMALL = "resolution=16 channel-base=64 channel-max=4 z-dim=8 w-dim=8"
NORTH = SiteContext("north", ("north",), torch.device("cpu"))
generation = load_task("generation")


@pytest.fixture(scope="module")
def judged() -> tuple[dict, dict, dict]:
    """Features, images and measures of 12 images of class a, 6 of b, and one person's 5 of c."""
    draws = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [12, 6, 5])
    persons = [f"p{k}" for k in range(18)] + ["last"] * 5
    shape = (len(labels), 1, 16, 16)
    images = {kind: draws.uniform(-1, 1, shape).astype("f4") for kind in ("real", "generated")}
    features = {kind: draws.normal(size=(len(labels), 4)) for kind in images}
    data = dataset((images["real"] + 1) / 2, labels, persons)
    shown, how = np.arange(len(labels)), {"least_people": 2, "seed": 0}
    return features, images, of_each_class(features, images, shown, data, CLASSES, **how)


def test_a_class_is_judged_by_its_own_images_alone(judged) -> None:
    features, _, found = judged
    own = judge_features(features["generated"][:12], features["real"][:12])
    for measure in ("frechet_distance", "kernel_distance", "precision", "recall", "coverage"):
        assert found[f"{measure}.a"] == own[measure]


def test_a_class_of_too_few_people_is_not_told(judged) -> None:
    assert {name.partition(".")[2] for name in judged[2]} == {"a", "b"}


def test_a_measure_that_a_class_has_too_few_images_for_is_left_out(judged) -> None:
    assert {name.partition(".")[0] for name in judged[2] if name.endswith(".b")} == {*OF_A_CLASS}
    two = dataset(np.zeros((2, 1, 16, 16), "f4"), [0, 0])
    features = {kind: np.zeros((2, 4)) for kind in ("real", "generated")}
    images = {kind: np.zeros((2, 1, 16, 16), "f4") for kind in features}
    shown = np.arange(2)
    few = of_each_class(features, images, shown, two, CLASSES, least_people=1, seed=0)
    assert {*few} == {"kernel_distance.a", "ms_ssim.a", "ms_ssim_real.a"}


def test_pairs_are_of_some_images_of_every_class_whatever_their_order() -> None:
    labels = np.repeat([0, 1, 2], [1000, 3, 200])
    shown = some_of_each(dataset(np.zeros((len(labels), 1, 2, 2), "f4"), labels), 0)
    assert np.bincount(labels[shown]).tolist() == [MOST_IMAGES, 3, MOST_IMAGES]
    assert shown.max() > labels.searchsorted(2) and len(set(shown)) == len(shown)


@given(
    st.dictionaries(st.sampled_from("abc"), st.integers(0, 30)),
    st.integers(1, 20),
)
def test_measures_of_a_class_leave_only_over_enough_people(classes, least) -> None:
    metrics = {f"recall.{name}": 0.5 for name in "abc"} | {"recall": 0.5}
    found = Evaluation(99, metrics, people=99, fewest=99, classes=classes)
    told = Disclosure(min_participants=least).evaluation(found).metrics
    few = {name for name, people in classes.items() if people < least}
    assert told.keys() == metrics.keys() - {f"recall.{name}" for name in few}


def test_the_gate_counts_the_people_of_each_class_itself(tiny_cohort: Path) -> None:
    table = read_table(load_study("brain-sex"), "north", tiny_cohort / "north")
    facts = facts_of_splits(table, run_config({"task": "generation"}))
    for one in facts.values():
        assert sum(one.classes.values()) == one.people
        assert one.classes.keys() <= {"female", "male"} and one.fewest == one.people


def test_all_measures_are_announced(judged) -> None:
    assert judged[2].keys() <= set(generation_classes.names(CLASSES))


def test_images_that_are_all_the_same_have_a_similarity_of_one() -> None:
    same = np.tile(np.random.default_rng(0).uniform(-1, 1, (1, 3, 32, 32)), (4, 1, 1, 1))
    other = np.random.default_rng(1).uniform(-1, 1, (4, 3, 32, 32))
    found = variety(same.astype("f4"), other.astype("f4"), 0)
    assert found["ms_ssim"] == pytest.approx(1, abs=1e-6)
    assert found["ms_ssim_real"] < 0.5


def test_only_a_generator_that_is_told_the_class_is_judged_by_class() -> None:
    def told(**values) -> tuple[str, ...]:
        config = run_config(GENERATION, **values)
        return classes_of(generation.build_model(config, NORTH).ema, config)

    names = load_study("skin-lesions").label.classes.names
    assert told(gan_changes=f"{SMALL} label-kinds=diagnosis,site") == names
    assert told(gan_changes=f"{SMALL} label-kinds=site") == ()
    assert told(gan_changes=f"{SMALL} label-kinds=none", classes="MEL") == names


@pytest.fixture
def of_classes(monkeypatch: pytest.MonkeyPatch):
    """Open a site of two melanomas and a nevus to train on, and a nevus to validate by."""

    def opened(study, site, folder, split, *, size, cache, harmonize):
        names = study.label.classes.names
        words = ["MEL", "NV", "MEL"] if split == "train" else ["NV"]
        images = np.zeros((len(words), 3, size, size), "f4")
        return dataset(images, [names.index(word) for word in words])

    monkeypatch.setattr("common.tasks.generation.open_planes", opened)
    return lambda split, classes: generation.open_split(
        "north", Path(), split, run_config(GENERATION, classes=classes), Path()
    )


def test_a_generator_of_one_class_sees_no_other(of_classes) -> None:
    assert len(of_classes("train", "MEL")) == 2
    assert len(of_classes("train", "MEL,NV")) == len(of_classes("train", "")) == 3


def test_a_site_without_the_class_cannot_train(of_classes) -> None:
    with pytest.raises(DataContractError, match=r"data\.classes"):
        of_classes("train", "DF")


def test_a_site_without_the_class_to_validate_by_tells_nothing(of_classes) -> None:
    with pytest.raises(UnlabelledError):
        of_classes("val", "MEL")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({**GENERATION, "data.classes": "melanoma"}, "none of the classes.*MEL"),
        ({"data.classes": "female"}, "for task 'generation'"),
    ],
)
def test_classes_that_cannot_be_chosen_are_refused(values: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        read_run_config(values)


def test_a_deployed_site_refuses_a_choice_of_classes() -> None:
    config = run_config(GENERATION, classes="MEL")
    assert any("data.classes" in why for why in SitePolicy().objections(config))
    assert not any("data.classes" in why for why in SIMULATED.objections(config))


def test_names_of_classes_stand_between_commas() -> None:
    assert run_config(GENERATION, classes=" NV , MEL").data.chosen_classes == ("NV", "MEL")
