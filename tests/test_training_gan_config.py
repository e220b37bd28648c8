"""The GAN's configuration: presets that can be built, refusals in words, nothing lost."""

from __future__ import annotations

import subprocess
import sys

import pytest
from pydantic import ValidationError

from common.errors import ConfigError
from common.training.gan_config import GanConfig, label_values
from common.training.gan_presets import PRESETS, preset

DEFAULTS = GanConfig().to_mapping()
VALUES = {"sex": ("F", "M"), "height": ("-9", "0", "18"), "site": ("north", "south")}


def refusal(changes: dict) -> str:
    with pytest.raises(ConfigError) as caught:
        GanConfig.from_mapping(changes)
    return str(caught.value)


@pytest.mark.parametrize("name", PRESETS)
def test_preset_survives_the_mapping_and_its_networks_can_be_built(name):
    config = preset(name)
    flat = config.to_mapping()
    assert GanConfig.from_mapping(flat) == config
    assert {type(value) for value in flat.values()} <= {bool, int, float, str}
    architecture = config.architecture(VALUES)
    assert architecture.resolution == config.resolution == int(name.split("-")[1])
    assert architecture.channel_base == config.channel_base


def test_sizes_of_presets_are_those_whose_speed_is_published():
    sizes = {
        name: (config.resolution, config.channel_base, config.channel_max)
        for name, config in PRESETS.items()
        if not name.endswith("-federated")
    }
    assert sizes == {
        "tiny-32": (32, 4096, 64),
        "brain-64": (64, 8192, 128),
        "brain-128": (128, 8192, 128),
        "paper-256": (256, 16384, 512),
    }


def test_unknown_preset_lists_the_known_ones():
    with pytest.raises(ConfigError, match=", ".join(PRESETS)):
        preset("tiny-23")


@pytest.mark.parametrize("key", DEFAULTS)
def test_every_key_says_what_it_accepts_and_means(key):
    assert GanConfig.accepted_values(key)
    assert GanConfig.model_fields[key.replace("-", "_")].description


def test_several_faults_are_all_named_a_line_each():
    text = refusal(
        {"kimgs": 3, "resolution": 48, "mirror": 1, "r1-gamma": -1, "augment": "some", "seed": 0.5}
        | {"flips": True}
    )
    *lines, known = text.splitlines()
    assert len(lines) == 7
    assert known.startswith("GAN config: nearest of ") and "kimg" in known
    assert text.count("known keys") == 1
    assert all(line.startswith("GAN config: ") for line in lines)
    assert "unknown key 'kimgs'; did you mean 'kimg'?" in text
    assert "resolution = 48: accepted is a whole number from 16 up to 1024" in text
    assert "a power of two" in text
    assert "mirror = 1: accepted is true or false" in text
    assert "r1-gamma = -1: accepted is a number from 0" in text
    assert "augment = 'some': accepted is one of 'adaptive', 'fixed', 'off'" in text
    assert "seed = 0.5: accepted is a whole number" in text


@pytest.mark.parametrize(
    ("given", "kinds"),
    [
        ("", ()),
        ("none", ()),
        ("sex", ("sex",)),
        ("sex,site", ("sex", "site")),
        ("site, sex", ("sex", "site")),
        ("site,diagnosis,height,age", ("age", "diagnosis", "height", "site")),
        (["site"], ("site",)),
        ([], ()),
    ],
)
def test_label_kinds_as_text_or_list_have_one_order(given, kinds):
    config = GanConfig.from_mapping({"label-kinds": given})
    assert config.label_kinds == kinds
    assert GanConfig.from_mapping(config.to_mapping()) == config


@pytest.mark.parametrize("wrong", ["sex,sex", "sex,", "a=b", [""], [3], 3, True, ["x" * 201]])
def test_what_cannot_name_a_condition_is_refused(wrong):
    assert f"label-kinds = {wrong!r}: accepted is none, or names of conditions" in refusal(
        {"label-kinds": wrong}
    )


def test_architecture_sorts_values_and_needs_them():
    config = GanConfig(label_kinds=("sex", "site"), seed=7)
    architecture = config.architecture({"site": ["south", "north"], "sex": ["M", "F"]})
    assert architecture.labels == (("sex", ("F", "M")), ("site", ("north", "south")))
    assert architecture.noise_seed == 7
    with pytest.raises(ConfigError, match="values of site are not known"):
        config.architecture({"sex": ["F", "M"]})
    assert GanConfig(label_kinds=()).architecture().label_dim == 0


def test_values_of_labels_are_those_of_the_data():
    rows = [{"sex": "M", "site": "south", "height": "18"}, {"sex": "F", "height": "-9"},
            {"sex": "M", "site": "north", "height": "0"}]  # fmt: skip
    assert label_values(rows) == VALUES


def test_words_that_python_reads_as_numbers_have_a_place_in_the_order():
    names = ["nan", "inf", "-inf", "1e999", "10", "9", "-9", "north"]
    expected = ("-9", "9", "10", "-inf", "1e999", "inf", "nan", "north")
    for shift in range(len(names)):
        rows = [{"site": name} for name in names[shift:] + names[:shift]]
        assert label_values(rows, ["site"]) == {"site": expected}


def test_steps_of_augmentation_are_letters_in_the_papers_order():
    assert GanConfig().augment_steps == "bgc"
    assert GanConfig.from_mapping({"augment-steps": "bgcfnc"}).augment_steps == "bgcfnc"
    for wrong in ("", "c", "gb", "bgcc", "BGC", True):
        assert "accepted is one of 'b', 'bg', 'bgc'" in refusal({"augment-steps": wrong})


def test_batch_must_fit_the_groups_of_the_discriminator():
    text = refusal({"batch-size": 6, "minibatch-group": 4})
    assert "batch-size 6 is no multiple of minibatch-group 4" in text
    assert GanConfig.from_mapping({"batch-size": 3, "minibatch-group": 4}).batch_size == 3


def test_changes_keep_the_rest():
    config = preset("brain-64").with_changes({"seed": 3, "kimg": 1})
    assert config == preset("brain-64").model_copy(update={"seed": 3, "kimg": 1.0})
    with pytest.raises(ConfigError, match="did you mean 'seed'"):
        config.with_changes({"sed": 1})


def test_length_in_iterations_is_rounded_up():
    assert GanConfig(kimg=0.1, batch_size=16).total_steps == 7


def test_configuration_is_frozen():
    with pytest.raises(ValidationError):
        GanConfig().seed = 1
    assert hash(GanConfig()) == hash(GanConfig())


def test_reading_a_configuration_needs_no_torch():
    code = "import sys, common.training.gan_config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
