"""The run configuration: one set of defaults, every refusal in words, nothing lost on the way."""

from __future__ import annotations

import math
import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from common.config.groups import Group
from common.config.renamed import hint
from common.config.run_config import GROUPS, RunConfig, flatten, known_keys
from common.errors import ConfigError
from common.tasks.task import read_run_config
from common.training.gan_presets import stylegan2

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
DEFAULTS = RunConfig.from_flower({}).to_flower()
LEFT_OPEN = RunConfig().to_flower()
FLOAT_KEYS = [key for key, value in DEFAULTS.items() if isinstance(value, float)]
INTEGER_KEYS = [key for key, value in DEFAULTS.items() if type(value) is int]
TEXT_KEYS = [key for key, value in DEFAULTS.items() if isinstance(value, str)]


def refusal(run_config: dict) -> str:
    with pytest.raises(ConfigError) as caught:
        read_run_config(run_config)
    return str(caught.value)


def test_defaults_are_those_that_flower_reads_in_pyproject():
    flower = tomllib.loads(PYPROJECT.read_text())["tool"]["flwr"]["app"]["config"]
    flower = flatten(flower)
    assert flower == LEFT_OPEN
    # 1 == 1.0 in Python, but Flower checks the type of an override against the default's.
    assert {k: type(v) for k, v in flower.items()} == {k: type(v) for k, v in DEFAULTS.items()}


def test_nothing_given_is_the_defaults():
    assert RunConfig.from_flower({}) == RunConfig.from_flower(DEFAULTS)
    assert RunConfig.from_flower({}) == RunConfig.from_flower(LEFT_OPEN)


def test_every_key_says_what_it_accepts_and_means():
    for group in (RunConfig, *GROUPS.values()):
        for name, field in group.model_fields.items():
            if name not in GROUPS:
                assert group.accepted_values(name.replace("_", "-"))
                assert field.description, name


def test_known_keys_are_those_of_a_flat_config():
    assert sorted(known_keys()) == sorted(DEFAULTS)
    assert all(issubclass(group, Group) for group in GROUPS.values())


def test_keys_of_before_the_groups_name_the_new_one():
    assert "unknown key 'model.weights'; it is 'model.warm-start' now" in refusal(
        {"model.weights": "/w.safetensors"}
    )
    assert "unknown key 'num-server-rounds'; it is 'run.rounds' now" in refusal(
        {"num-server-rounds": 3}
    )
    assert "it was removed" in refusal({"server-momentum": 0.5})
    assert not hint("run.rounds")


@pytest.mark.parametrize("key", DEFAULTS)
def test_unknown_key_names_the_nearest_known_one(key):
    text = refusal({f"{key}x": 1})
    assert f"unknown key '{key}x'" in text
    assert f"did you mean '{key}'?" in text


def test_unknown_key_without_a_neighbour_names_the_nearest():
    text = refusal({"colour": "red"})
    assert "did you mean" not in text
    assert 0 < sum(key in text for key in DEFAULTS) < 10
    assert "`fedscan config` lists all" in text


def test_field_names_are_not_keys():
    """Flower's keys are kebab-case, and two spellings of one key would be one too many."""
    assert "did you mean 'training.local-steps'?" in refusal({"training.local_steps": 5})


@pytest.mark.parametrize("key", INTEGER_KEYS + FLOAT_KEYS)
@pytest.mark.parametrize("wrong", [True, "3", "three"])
def test_text_or_bool_is_no_number(key, wrong):
    text = refusal({key: wrong})
    assert f"{key} = {wrong!r}: accepted is a" in text
    assert "number" in text


@pytest.mark.parametrize("key", INTEGER_KEYS)
def test_fraction_is_no_whole_number(key):
    assert "a whole number" in refusal({key: 2.5})


@pytest.mark.parametrize("key", TEXT_KEYS)
@pytest.mark.parametrize("wrong", [1, 1.5, True])
def test_number_is_no_text(key, wrong):
    assert f"{key} = {wrong!r}" in refusal({key: wrong})


@pytest.mark.parametrize("key", FLOAT_KEYS)
@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf, 10**400])
def test_numbers_are_finite(key, wrong):
    assert f"{key} = {wrong!r}" in refusal({key: wrong})


@pytest.mark.parametrize(
    ("key", "wrong", "accepted"),
    [
        ("run.rounds", -1, "from 0"),
        ("training.local-steps", -1, "from 0"),
        ("training.batch-size", -1, "from 0"),
        ("training.batch-size", 5000, "up to 4096"),
        ("run.evaluate-every", -1, "from 0"),
        ("training.learning-rate", -1e-3, "from 0"),
        ("training.learning-rate", 11.0, "up to 10"),
        ("training.weight-decay", -0.1, "from 0"),
        ("data.size", 15, "from 16"),
        ("data.size", 513, "up to 512"),
        ("run.seed", -1, "from 0"),
        ("run.seed", 2**53 + 1, "from 0"),
        ("run.threads", 0, "from 1"),
        ("run.min-sites", 0, "from 1"),
        ("run.connect-timeout", 0.0, "above 0"),
        ("run.round-timeout", 0.0, "above 0"),
    ],
)
def test_out_of_range_says_the_range(key, wrong, accepted):
    text = refusal({key: wrong})
    assert f"{key} = {wrong!r}" in text
    assert accepted in text


@pytest.mark.parametrize(
    ("key", "options"),
    [
        ("task", ["classification", "generation"]),
        ("strategy.weighting", ["auto", "images", "uniform"]),
        ("transport", ["float32", "float16", "int8"]),
        ("strategy.share", ["both", "generator"]),
        (
            "model.classifier",
            ["auto", "small", "efficientnet-b0", "efficientnet-b2", "slices", "gan-features"],
        ),
        ("run.device", ["auto", "cpu"]),
    ],
)
def test_unknown_option_lists_the_options(key, options):
    text = refusal({key: "none of these"})
    assert "accepted is one of " + ", ".join(map(repr, options)) in text


@pytest.mark.parametrize("key", ["run.output-dir", "data.cohort-dir"])
@pytest.mark.parametrize("relative", ["runs", "./runs", "../runs", "~/runs"])
def test_relative_folder_is_refused_and_says_why(key, relative):
    text = refusal({key: relative})
    assert f"{key} = {relative!r}" in text
    assert "an absolute path" in text
    assert "SuperLink was started" in text


@pytest.mark.parametrize(
    ("task", "suitable"),
    [
        ("classification", (45, 40, 16, 1, "images")),
        ("generation", (300, 8, 4, 30, "uniform")),
    ],
)
@pytest.mark.parametrize("written", [False, True])
def test_what_is_left_open_takes_what_suits_the_task(task, suitable, written):
    keys = (
        "run.rounds",
        "training.local-steps",
        "training.batch-size",
        "run.evaluate-every",
        "strategy.weighting",
    )
    left_open = {key: LEFT_OPEN[key] for key in keys} if written else {}
    config = RunConfig.from_flower({"task": task} | left_open)
    flat = config.to_flower()
    assert tuple(flat[key] for key in keys) == suitable
    assert config == RunConfig.from_flower(flat)


@pytest.mark.parametrize("task", ["classification", "generation"])
def test_what_is_given_stays_whatever_suits_the_task(task):
    given = {
        **{
            "run.rounds": 3,
            "training.local-steps": 4,
            "training.batch-size": 12,
            "run.evaluate-every": 2,
        },
        "strategy.weighting": "uniform" if task == "classification" else "images",
    }
    flat = RunConfig.from_flower({"task": task} | given).to_flower()
    assert {key: flat[key] for key in given} == given


@pytest.mark.parametrize("wrong", [False, 0.0, "0"])
def test_left_open_is_a_whole_zero_and_nothing_like_it(wrong):
    assert f"training.local-steps = {wrong!r}" in refusal({"training.local-steps": wrong})


STUDY = """name = "x"
[images]
storage = "bids"
channels = 1
[label]
column = "y"
classes = ["a", "b"]
[classifier]
strategy = "fedbn"
adapt = "threshold"
rounds = 7
"""


def test_classifier_that_is_left_open_is_as_the_study_says():
    config = RunConfig.from_flower({"study": STUDY})
    assert (config.strategy.name, config.model.adapt, config.run.rounds) == (
        "fedbn",
        "threshold",
        7,
    )
    given = {"strategy.name": "fedavg", "model.adapt": "none", "run.rounds": 3}
    config = RunConfig.from_flower({"study": STUDY, **given})
    assert (config.strategy.name, config.model.adapt, config.run.rounds) == ("fedavg", "none", 3)


def test_generator_takes_nothing_of_what_the_study_says_of_its_classifier():
    usual, config = (
        RunConfig.from_flower({"study": study, "task": "generation"}).to_flower()
        for study in ("brain-sex", STUDY)
    )
    differ = {key for key, value in config.items() if value != usual[key]}
    assert differ <= {"study", "data.size", "model.classifier", "training.balance"}
    assert config["model.adapt"] == "none"
    assert RunConfig.from_flower({"task": "generation", "model.adapt": "none"}).task == "generation"


def test_options_of_generation_are_refused_elsewhere_rather_than_ignored():
    assert "no effect without task 'generation'" in refusal({"strategy.share": "generator"})
    fedprox = {"task": "generation", "strategy.name": "fedprox", "strategy.mu": 0.1}
    assert "no strategy 'fedprox'" in refusal(fedprox)
    config = RunConfig.from_flower({"task": "generation", "strategy.share": "generator"})
    assert config.strategy.share == "generator"


def test_several_faults_are_all_named_a_line_each():
    faults = {
        "seeds": 1,
        "run.threads": True,
        "data.size": 8,
        "run.output-dir": "runs",
        "run.device": "tpu",
    }
    text = refusal(faults)
    assert all(key in text for key in faults)
    lines = text.splitlines()
    assert len(lines) == len(faults) + 1  # and which known keys are nearest, once
    assert lines[-1].startswith("run config: nearest of ") and "run.seed" in lines[-1]
    assert lines[-1].count(",") < 5
    assert all(line.startswith("run config: ") for line in lines)


@pytest.mark.parametrize("key", FLOAT_KEYS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_no_float_key_takes_what_is_not_finite(key, value):
    assert f"{key} = {value}" in refusal({key: value})


@pytest.mark.parametrize("key", FLOAT_KEYS)
def test_whole_number_is_a_fine_float(key):
    ones = {
        "strategy.most-share": 1,
        "run.fraction": 1,
        "training.logit-tau": 1,
        "training.layer-decay": 1,
        "trouble.label-noise": 1,
        "trouble.attack-scale": 1,
        "privacy.max-norm": 1,
        "privacy.central-norm": 1,
    }
    zeros = dict.fromkeys(
        (
            *("training.label-smoothing", "trouble.dropout", "trouble.delay"),
            *("privacy.delta", "privacy.central-delta"),
        ),
        0,
    )
    whole = {**zeros, **ones}.get(key, 2)
    needed = {"privacy.secure-sums": key == "privacy.max-change"}
    config = RunConfig.from_flower({key: whole, **needed})
    value = config.to_flower()[key]
    assert value == whole
    assert isinstance(value, float)
    assert config == RunConfig.from_flower({key: float(whole), **needed})


def test_configuration_is_frozen_and_can_key_a_cache():
    config = RunConfig.from_flower({})
    with pytest.raises(ValidationError):
        config.run.seed = 1
    assert hash(config) == hash(RunConfig.from_flower({}))
    assert len({config, config.replace({}), config.replace({"run.seed": 1})}) == 2


def test_total_steps_are_rounds_times_steps():
    assert RunConfig.from_flower({"run.rounds": 7, "training.local-steps": 11}).total_steps == 77


def _positive(top: float) -> st.SearchStrategy[float]:
    return st.floats(0, top, exclude_min=True)


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ("", {}),
        ("north:101", {"north": 101}),
        ("  north:101   south:18446744073709551615 ", {"north": 101, "south": 2**64 - 1}),
    ],
)
def test_site_nodes_say_which_supernode_each_site_is(pairs, expected):
    config = RunConfig.from_flower({"run.site-nodes": pairs, "run.min-sites": 1})
    assert config.nodes_of_sites() == expected


@pytest.mark.parametrize(
    "pairs",
    [
        "north",
        "north:",
        ":101",
        "north:x",
        "north:-1",
        "north:1 north:2",
        "north:1 south:1",
        "all:1",
    ]
    + ["no/rth:1", "north:1,south:2"],
)
def test_site_nodes_that_bind_no_site_to_one_node_are_refused(pairs):
    with pytest.raises(ConfigError, match=r"run.site-nodes = .*accepted is pairs SITE:NODE"):
        RunConfig.from_flower({"run.site-nodes": pairs})


def test_more_sites_than_are_bound_cannot_be_waited_for():
    with pytest.raises(ConfigError, match=r"run\.site-nodes binds 1 sites and run\.min-sites is 2"):
        RunConfig.from_flower({"run.site-nodes": "north:1"})


RUN_CONFIGS = st.fixed_dictionaries(
    {},
    optional={
        "data.cohort-dir": st.sampled_from(["", "/data/cohort", "/data/ä b"]),
        "run.output-dir": st.sampled_from(["", "/runs"]),
        "run.rounds": st.integers(1, 100_000),
        "training.local-steps": st.integers(1, 1_000_000),
        "training.batch-size": st.integers(1, 4096),
        "run.evaluate-every": st.integers(1, 100_000),
        "strategy.weighting": st.sampled_from(["images", "uniform"]),
        "transport": st.sampled_from(["float32", "float16", "int8"]),
        "training.learning-rate": _positive(10) | st.integers(1, 10),
        "training.weight-decay": st.floats(0, 10) | st.integers(0, 10),
        "data.size": st.integers(16, 256),
        "data.harmonize": st.sampled_from(["none", "landmarks"]),
        "model.classifier": st.sampled_from(["small", "efficientnet-b2"]),
        "run.seed": st.integers(0, 2**53),
        "run.device": st.sampled_from(["auto", "cpu"]),
        "run.threads": st.integers(1, 256),
        "run.min-sites": st.integers(1, 10_000),
        "strategy.most-share": _positive(1),
        "strategy.most-norm": st.floats(0, 1e6),
        "run.connect-timeout": _positive(1e6),
        "run.round-timeout": _positive(1e6) | st.integers(1, 10**6),
    },
)


@settings(deadline=None, max_examples=60)
@given(RUN_CONFIGS, st.none() | _positive(1e3))
def test_flower_round_trip_loses_nothing(run_config, mu):
    if mu is not None:
        run_config |= {"strategy.name": "fedprox", "strategy.options": f"mu={mu}"}
    config = RunConfig.from_flower(run_config)
    flat = config.to_flower()
    assert RunConfig.from_flower(flat) == config
    assert flat == DEFAULTS | run_config
    assert {type(value) for value in flat.values()} <= {bool, int, float, str}


@settings(deadline=None, max_examples=60)
@given(
    st.dictionaries(
        st.sampled_from(list(DEFAULTS)) | st.text(max_size=8),
        st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.text(max_size=8),
        max_size=6,
    )
)
def test_whatever_flower_hands_over_is_accepted_or_refused_in_words(run_config):
    try:
        RunConfig.from_flower(run_config)
    except ConfigError as error:
        assert str(error).startswith("run config: ")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model.gan-checkpoint", "/runs/7"),
        ("training.learning-rate", 0.01),
        ("data.size", 16),
        ("model.classifier", "slices"),
        ("model.adapt", "center"),
        ("training.loss", "focal"),
        ("training.absent-classes", "mask"),
    ],
)
def test_a_classifiers_options_are_refused_for_generation_rather_than_ignored(key, value):
    assert f"{key} has no effect with task 'generation'" in refusal(
        {"task": "generation", key: value}
    )


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"model.gan": "nope"}, "model.gan has no effect with classifier 'small'"),
        (
            {"model.gan-changes": "z-dim=8"},
            "model.gan-changes has no effect with classifier 'small'",
        ),
        ({"model.classifier": "slices", "model.gan": "nope"}, "preset 'nope'"),
        (
            {"model.classifier": "gan-features", "model.gan-changes": "seed=8"},
            "decided by the run config",
        ),
        (
            {"model.classifier": "slices", "model.gan-changes": "log-every=8"},
            "no effect in a federation",
        ),
        ({"task": "generation", "training.batch-size": 1}, "set training.batch-size above 1"),
        ({"task": "generation", "model.gan-changes": "resolution=512"}, "resolution = 512"),
    ],
)
def test_networks_that_cannot_be_are_refused_before_anything_starts(changed, words):
    with pytest.raises(ConfigError) as caught:
        read_run_config(changed)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"training.focal-gamma": 1.0}, "training.focal-gamma has no effect"),
        ({"training.loss": "focal", "training.logit-tau": 2.0}, "training.logit-tau has no effect"),
        ({"training.loss": "logit-adjusted", "training.balance": "batches"}, "twice"),
    ],
)
def test_losses_options_that_do_nothing_or_the_same_twice_are_refused(changed, words):
    assert words in refusal(changed)


def test_beside_a_logit_adjusted_loss_nothing_else_balances_by_default():
    for study in ("brain-sex", "skin-lesions"):
        values = {"study": study, "training.loss": "logit-adjusted"}
        assert RunConfig.from_flower(values).training.balance == "none"


def test_batches_of_a_classifier_need_not_suit_a_gan():
    one = RunConfig.from_flower({"model.classifier": "slices", "training.batch-size": 7})
    assert stylegan2(one).resolution == 32
