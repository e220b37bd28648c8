"""What a reply may hold is known before the site's process answers, and is what it then holds."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_gateway_explain import people
from test_strategies_together import OPTIONS
from tiny import dataset

from clients.gateway.form import ArrayForm, form_of
from clients.policy import SIMULATED, SitePolicy
from common import messages
from common.config.run_config import RunConfig
from common.disclosure import WITHHELD, Disclosure
from common.errors import ConfigError
from common.evaluation.extractors.network import FEATURES
from common.evaluation.of_site import Evaluation
from common.local_round import first_weights, judge_at_site, train_one_round
from common.messages import EVALUATE, HELLO, TRAIN
from common.strategies.strategy import strategy_names
from common.tasks import generation_quality
from common.tasks.task import SiteContext, load_task, read_run_config
from common.transport import encode_update

pytestmark = pytest.mark.usefixtures("one_thread")

SITES = ("island", "north")
PLACE = SiteContext("north", SITES, torch.device("cpu"))
TINY = {
    **{"run.rounds": 2, "training.local-steps": 2, "training.batch-size": 4, "data.size": 16},
    "strategy.name": "fedavg",
}
GENERATION = {
    "run.rounds": 2,
    "task": "generation",
    "training.local-steps": 1,
    "training.batch-size": 4,
    "model.gan": "tiny-32-federated",
    "model.gan-changes": "channel-base=64 channel-max=8 z-dim=8 w-dim=8",
}


def run(**values: object) -> RunConfig:
    return read_run_config(TINY | {key.replace("__", "."): one for key, one in values.items()})


def of_strategy(name: str) -> RunConfig:
    options = {f"strategy.{key}": value for key, value in OPTIONS.get(name, {}).items()}
    return read_run_config(TINY | {"strategy.name": name} | options)


def form(kind: str, config: RunConfig, policy: SitePolicy = SIMULATED, split: str = "val"):
    return form_of(kind, config, policy, site="north", sites=SITES, split=split)


@pytest.fixture
def load():
    """Open a split of random images, of eight people and two classes."""

    def opened(config: RunConfig, split: str):
        volumes = config.task == "classification"
        shape = (1, *(config.data.size,) * 3) if volumes else (1, 32, 32)
        images = np.random.default_rng(len(split)).uniform(0, 1, (8, *shape)).astype(np.float32)
        kinds = {"sex": ("female", "male"), "height": ("-9", "0", "9", "18", "27"), "site": SITES}
        conditions = [{name: of[k % len(of)] for name, of in kinds.items()} for k in range(8)]
        return dataset(images, np.arange(8) % 2, conditions=conditions)

    return opened


def train(config: RunConfig, load, transport: str = "float32"):
    """Do a round as a site does; return its metrics and the update as it travels."""
    task = load_task(config.task)
    model = task.build_model(config, PLACE)
    received = first_weights(task, model, config, SITES)
    done = train_one_round(
        *(task, model, load(config, "train"), config),
        received=received,
        private={},
        place=PLACE,
        round_number=1,
    )
    reference = {name: received[name] for name in done.sent}
    return done.metrics, encode_update(done.sent, reference, {}, transport)[0]


def forms(update) -> dict[str, ArrayForm]:
    return {
        name: ArrayForm(tuple(tensor.shape), str(tensor.numpy().dtype))
        for name, tensor in update.items()
    }


@pytest.mark.parametrize("name", strategy_names())
def test_a_round_of_every_strategy_sends_what_its_form_says_and_nothing_else(name, load):
    config = of_strategy(name)
    metrics, update = train(config, load)
    expected = form(TRAIN, config)
    assert forms(update) == expected.arrays
    assert metrics.keys() == expected.metrics
    assert expected.counts == {messages.WEIGHT}


@pytest.mark.parametrize("transport", ["float16", "int8"])
@pytest.mark.parametrize("strategy", ["fedavg", "scaffold"])
def test_arrays_have_the_form_of_their_encoding(strategy, transport, load):
    config = run(strategy__name=strategy, transport=transport)
    assert forms(train(config, load, transport)[1]) == form(TRAIN, config).arrays


def test_what_stays_at_the_sites_is_in_no_form():
    arrays = form(TRAIN, run(strategy__name="fedper")).arrays
    assert arrays
    assert not any(name.startswith("head") for name in arrays)


def test_a_generators_round_sends_what_its_form_says(load):
    config = read_run_config(GENERATION)
    metrics, update = train(config, load)
    expected = form(TRAIN, config)
    assert forms(update) == expected.arrays
    assert metrics.keys() == expected.metrics


def test_a_generator_with_diversity_and_without_regularization_tells_other_numbers(load):
    changes = GENERATION["model.gan-changes"] + " diversity-weight=1 path-weight=0 r1-gamma=0"
    config = read_run_config(GENERATION | {"model.gan-changes": changes})
    metrics, _ = train(config, load)
    assert metrics.keys() == form(TRAIN, config).metrics
    assert "diversity-shortfall" in metrics


def judge(config: RunConfig, load, split: str, records: Path | None = None) -> Evaluation:
    task = load_task(config.task)
    model = task.build_model(config, PLACE)
    return judge_at_site(
        task,
        task.first_release(model, config),
        lambda one: load(config, one),
        split,
        config,
        private={},
        place=PLACE,
        round_number=1,
        records=records,
    )


@pytest.mark.parametrize("split", ["val", "test"])
def test_an_evaluation_tells_the_metrics_of_its_form(split, load, tmp_path):
    config = run()
    found = judge(config, load, split, tmp_path if split == "test" else None)
    expected = form(EVALUATE, config, split=split)
    assert found.metrics.keys() == expected.metrics
    assert not found.statistics
    assert not expected.arrays


def test_a_study_of_many_classes_tells_metrics_of_each():
    from common.evaluation.classification import classification_metrics

    config = run(study="skin-lesions")
    label = config.read_study().label
    names = label.classes.names
    some = np.full((2 * len(names), len(names)), 1 / len(names))
    found = classification_metrics(
        np.arange(2 * len(names)) % len(names), some, names, label.positive or None
    )
    assert len(names) > 2
    assert form(EVALUATE, config).metrics == found.keys()


def test_a_generators_test_tells_numbers_moments_and_words_of_its_form(load, tmp_path, monkeypatch):
    config = read_run_config(GENERATION)
    some = np.random.default_rng(0).normal(size=(32 * 32, FEATURES))
    untrained = SimpleNamespace(
        name=config.model.extractor,
        hash="0" * 64,
        features=lambda images: np.asarray(images, np.float64).reshape(len(images), -1) @ some,
    )
    monkeypatch.setattr(generation_quality, "_extractor", lambda name: untrained)
    found = judge(config, load, "test", tmp_path)
    expected = form(EVALUATE, config, split="test")
    assert found.metrics.keys() <= expected.metrics
    assert {"authenticity", "copies_flagged", "kernel_distance"} <= found.metrics.keys()
    assert found.statistics.keys() == expected.arrays.keys()
    for name, tensor in found.statistics.items():
        array = tensor.numpy()
        assert expected.arrays[name].fits(array.shape, str(array.dtype))
    for name, word in found.words.items():
        assert expected.words[name].fullmatch(word)


def test_an_extractor_of_the_sites_own_is_not_named():
    config = read_run_config(GENERATION)
    own = config.model.model_copy(update={"extractor": "/secret/network.pt"})
    words = form(EVALUATE, config.model_copy(update={"model": own})).words
    assert words["extractor"].fullmatch("a file of the sites' own")
    assert not words["extractor"].fullmatch("/secret/network.pt")


def test_a_withheld_evaluation_may_say_why_in_the_words_there_are_and_no_others():
    found = Disclosure(10).evaluation(Evaluation(3, {"loss": 1.0}, people=3, fewest=3))
    words = form(EVALUATE, run(), SitePolicy()).words
    assert words[WITHHELD].fullmatch(found.words[WITHHELD])
    assert words[WITHHELD].fullmatch("no image of split 'val' has a label to judge by")
    assert not words[WITHHELD].fullmatch("fewer than 11 participants")
    assert not words[WITHHELD].fullmatch("fewer than 10 participants, such as sub-003")


def test_a_site_says_who_it_is_in_its_own_name_and_in_hashes(tmp_path):
    from common.provenance import source_hash
    from common.tasks.task import survey

    expected = form(HELLO, run())
    counts = survey("north", people(tmp_path / "north", train=4, val=4, test=4), run())
    assert expected.counts == {*counts, "min_participants"}
    assert not expected.arrays
    identity = {
        **{"site": "north", "source-hash": source_hash()},
        **{"device": "cpu", "extractor-hash": ""},
    }
    assert identity.keys() == expected.identity.keys()
    assert all(expected.identity[name].fullmatch(word) for name, word in identity.items())
    for name, word in {"site": "south", "source-hash": "", "device": "cpu of dr smith"}.items():
        assert not expected.identity[name].fullmatch(word)


@pytest.mark.parametrize(
    ("shape", "dtype", "fits"),
    [
        ((64, 64), "float64", True),
        ((10, 10), "float64", True),
        ((65, 64), "float64", False),
        ((0, 10), "float64", False),
        ((64,), "float64", False),
        ((64, 64), "float32", False),
    ],
)
def test_lengths_that_a_file_of_the_site_decides_are_bounded(shape, dtype, fits):
    assert ArrayForm((64, 64), "float64", at_most=True).fits(shape, dtype) is fits
    exact = ArrayForm((64, 64), "float64")
    assert exact.fits(shape, dtype) is (shape == (64, 64) and dtype == "float64")


@pytest.mark.parametrize("sites", [("north", "north"), ("north", "a b"), ("north",) * 10_001])
def test_an_order_with_an_unusable_list_of_sites_has_no_form(sites):
    with pytest.raises(ConfigError, match="list of sites"):
        form_of(TRAIN, run(), SIMULATED, site="north", sites=sites)


def test_an_unknown_order_has_no_form():
    with pytest.raises(ConfigError, match="an order is one of"):
        form("query.shell", run())
