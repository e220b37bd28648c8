"""A GAN's training on disk: exact, whole or absent, and never anything but numbers."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_gan import start, toy_slices

from common import checkpoints
from common.errors import DivergedError, FedscanError
from common.models import architecture as architecture_module
from common.training import gan_checkpoint
from common.training.gan import GanTraining, fit
from common.training.gan_checkpoint import (
    load_checkpoint,
    load_generator,
    save_checkpoint,
)


def equal(one: GanTraining, other: GanTraining) -> bool:
    ours, theirs = one.export(), other.export()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def train(training: GanTraining, steps: int) -> GanTraining:
    fit(training, toy_slices(), steps=steps, seed=1)
    return training


@pytest.fixture(scope="module")
def trained() -> GanTraining:
    """Six iterations; not to be trained further."""
    return train(start(), 6)


@pytest.fixture
def folder(trained: GanTraining, tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "out", trained, toy_slices())
    return tmp_path / "out"


def weights_of(folder: Path) -> Path:
    (path,) = folder.glob("*.safetensors")
    return path


def edit(folder: Path, change: Callable[[dict], object]) -> None:
    path = folder / "gan.json"
    sidecar = json.loads(path.read_text())
    change(sidecar)
    path.write_text(json.dumps(sidecar))


def refusals(folder: Path) -> set[str]:
    """What loading to go on, and loading to make pictures, say."""
    found = set()
    for load in (load_checkpoint, load_generator):
        with pytest.raises(FedscanError) as caught:
            load(folder)
        found.add(str(caught.value))
    return found


class TestResume:
    def test_loaded_training_is_the_saved_one(self, folder, trained):
        loaded = load_checkpoint(folder)
        assert equal(loaded, trained)
        assert (loaded.steps, loaded.images_seen, loaded.p) == (6, 24, trained.p)
        assert loaded.config == trained.config
        assert loaded.architecture == trained.architecture

    def test_interrupted_training_is_the_uninterrupted_one_bit_for_bit(self, folder):
        assert equal(train(load_checkpoint(folder), 6), train(start(), 12))

    def test_another_process_goes_on_as_well(self, folder):
        """Private state lives on the disk: a deployed site starts a process for each message."""
        code = (
            "import sys, torch; torch.set_num_threads(1);"
            "from common.training.gan_checkpoint import *;"
            "from common.training.gan import fit; from tiny_gan import toy_slices;"
            "training = load_checkpoint(sys.argv[1]);"
            "fit(training, toy_slices(), steps=3, seed=1); save_checkpoint(sys.argv[1], training)"
        )
        here = Path(__file__).parent
        subprocess.run(
            [sys.executable, "-c", code, str(folder)],
            check=True,
            cwd=here,
            env={**os.environ, "PYTHONPATH": str(here.parent)},
        )
        assert equal(load_checkpoint(folder), train(start(), 9))

    def test_folder_may_be_named_by_a_file_in_it(self, folder, trained):
        for path in (folder / "gan.json", weights_of(folder), str(folder)):
            assert equal(load_checkpoint(path), trained)

    def test_what_is_no_size_may_change(self, folder, trained):
        config = trained.config.with_changes({"kimg": 9, "generator-learning-rate": 1e-3})
        loaded = load_checkpoint(folder, config=config)
        assert equal(loaded, trained)
        assert loaded.config == config
        assert loaded.generator_optimizer.param_groups[0]["lr"] == pytest.approx(1e-3 * 4 / 5)

    @pytest.mark.parametrize(
        ("changes", "p"),
        [
            ({"augment": "fixed", "augment-p": 0.7}, 0.7),
            ({"augment": "off", "augment-p": 0.7}, 0.0),
            ({"augment": "adaptive", "augment-p": 0.7}, None),
        ],
    )
    def test_p_is_the_configurations_where_it_does_not_adapt(self, folder, trained, changes, p):
        assert trained.p not in (0.0, 0.7)
        loaded = load_checkpoint(folder, config=trained.config.with_changes(changes))
        assert loaded.p == (trained.p if p is None else p)

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"channel-max": 8}, "channel_max 16 instead of 8"),
            ({"label-kinds": "sex,site"}, "label-kinds sex instead of sex,site"),
            ({"seed": 4}, "noise_seed 0 instead of 4"),
        ],
    )
    def test_other_networks_than_asked_for_are_refused(self, folder, trained, changes, words):
        with pytest.raises(FedscanError, match=words):
            load_checkpoint(folder, config=trained.config.with_changes(changes))


class TestGenerator:
    def test_is_the_average_over_time(self, folder, trained):
        generator, about = load_generator(folder)
        z, labels = torch.randn(2, 16, generator=torch.Generator().manual_seed(0)), torch.eye(2)
        assert torch.equal(generator(z, labels), trained.ema(z, labels))
        assert not torch.equal(generator(z, labels), trained.generator(z, labels))
        assert about["images_seen"] == 24
        assert not generator.training
        assert not any(p.requires_grad for p in generator.parameters())

    def test_fixed_noise_is_the_checkpoints(self, folder, trained):
        changed = load_checkpoint(folder)
        state = changed.export()
        for name in (name for name in state if name.endswith(".noise")):
            state[name] += 1
        changed.load(state)
        save_checkpoint(folder, changed)
        constants = load_generator(folder)[0].synthesis.noise_constants()
        for one, other in zip(constants, trained.ema.synthesis.noise_constants(), strict=True):
            torch.testing.assert_close(one, other + 1)

    @pytest.mark.parametrize("name", ["ema.synthesis.blocks.1.up.weight", "ema.mapping.w_average"])
    def test_generators_own_weights_do_not_stand_in_for_the_averages(self, folder, trained, name):
        state = trained.export()
        assert name.replace("ema", "generator", 1) in state
        del state[name]
        description = json.loads((folder / "gan.json").read_text())
        checkpoints.save_snapshot(folder, "gan", state, description)
        with pytest.raises(FedscanError, match="generator is not whole"):
            load_generator(folder)

    def test_loading_leaves_the_global_random_state_alone(self, folder):
        before = torch.get_rng_state()
        load_generator(folder)
        load_checkpoint(folder)
        assert torch.equal(torch.get_rng_state(), before)


class TestSidecar:
    def test_says_what_it_is(self, folder, trained):
        sidecar = json.loads((folder / "gan.json").read_text())
        assert sidecar["fingerprint"] == trained.architecture.fingerprint
        assert sidecar["config"] == trained.config.to_mapping()
        assert (sidecar["steps"], sidecar["images_seen"], sidecar["p"]) == (6, 24, trained.p)
        assert len(sidecar["source_hash"]) == 64
        assert sidecar["data"] == {
            "slices": 10,
            "participants": 10,
            "labels": {"sex": {"F": 4, "M": 6}, "site": {"north": 5, "south": 5}},
        }

    def test_participants_of_pooled_sites_are_counted_by_site(self, trained, tmp_path):
        data = toy_slices()
        ids = tuple(f"sub-{i // 4}" for i in range(10))  # three, and sites alternate
        save_checkpoint(tmp_path, trained, replace(data, persons=ids))
        assert json.loads((tmp_path / "gan.json").read_text())["data"]["participants"] == 6

    def test_nobody_is_named(self, folder):
        for path in folder.iterdir():
            assert b"secret" not in path.read_bytes()

    def test_same_state_gives_the_same_bytes(self, folder, trained, tmp_path):
        save_checkpoint(tmp_path / "again", trained, toy_slices())
        names = sorted(path.name for path in folder.iterdir())
        assert names == sorted(path.name for path in (tmp_path / "again").iterdir())
        for name in names:
            assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


class TestReplacing:
    def test_newer_checkpoint_leaves_nothing_of_the_older(self, folder, trained):
        save_checkpoint(folder, train(load_checkpoint(folder), 1))
        assert load_checkpoint(folder).steps == 7
        assert len(list(folder.iterdir())) == 2

    @pytest.mark.parametrize("step", ["write_atomically", "write_json"])
    def test_killed_in_between_the_older_one_is_whole(self, folder, trained, monkeypatch, step):
        newer = train(load_checkpoint(folder), 1)

        def killed(*_args: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(checkpoints, step, killed)
            with pytest.raises(KeyboardInterrupt):
                save_checkpoint(folder, newer)
        assert equal(load_checkpoint(folder), trained)
        save_checkpoint(folder, newer)  # and what was left behind is cleared away
        assert equal(load_checkpoint(folder), newer)
        assert len(list(folder.iterdir())) == 2

    def test_killed_before_clearing_away_the_newer_one_is_whole(self, folder, monkeypatch):
        newer = train(load_checkpoint(folder), 1)

        def killed(*_args: object, **_options: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(Path, "unlink", killed)
            with pytest.raises(KeyboardInterrupt):
                save_checkpoint(folder, newer)
        assert equal(load_checkpoint(folder), newer)

    def test_replaced_while_it_is_read(self, folder, monkeypatch):
        newer = train(load_checkpoint(folder), 1)
        read, pending = checkpoints.read_description, [newer]

        def then_replaced(*args: object) -> dict:
            description = read(*args)
            if pending:
                save_checkpoint(folder, pending.pop())
            return description

        monkeypatch.setattr(checkpoints, "read_description", then_replaced)
        assert equal(load_checkpoint(folder), newer)

    def test_diverged_training_does_not_replace_a_good_one(self, folder, trained):
        bad = load_checkpoint(folder)
        with torch.no_grad():
            bad.generator.mapping.layers[0].bias[0] = torch.nan
        with pytest.raises(DivergedError, match=r"layers\.0\.bias is not finite"):
            save_checkpoint(folder, bad)
        assert equal(load_checkpoint(folder), trained)


class TestRefusals:
    def test_networks_of_another_version(self, folder, monkeypatch):
        for module in (architecture_module, gan_checkpoint):
            monkeypatch.setattr(module, "ARCHITECTURE_VERSION", 2)
        (text,) = refusals(folder)
        assert "architecture version 1 instead of 2" in text
        assert "Use the fedscan that wrote it (version " in text
        assert "or train anew" in text

    def test_network_with_a_size_that_is_unknown_here(self, folder):
        edit(folder, lambda sidecar: sidecar["architecture"].update(attention=True))
        (text,) = refusals(folder)
        assert "unknown here: attention" in text

    def test_network_without_a_size_that_is_known_here(self, folder):
        edit(folder, lambda sidecar: sidecar["architecture"].pop("minibatch_group"))
        (text,) = refusals(folder)
        assert "not in the checkpoint: minibatch_group" in text

    def test_size_edited_by_hand(self, folder):
        edit(folder, lambda sidecar: sidecar["architecture"].update(channel_max=8))
        (text,) = refusals(folder)
        assert "not those that it was written with" in text

    @pytest.mark.parametrize(
        "size",
        [{"channel_max": 10**6}, {"w_dim": 10**9}, {"mapping_layers": 10**7},
         {"labels": [["site", [str(i) for i in range(5000)]]]}],
    )  # fmt: skip
    def test_sizes_that_would_take_all_memory(self, folder, monkeypatch, size):
        """Even with a fingerprint that fits them: nothing is built."""
        monkeypatch.setattr(gan_checkpoint, "build", lambda *_: pytest.fail("not to be called"))

        def change(sidecar: dict) -> None:
            sidecar["architecture"].update(size)
            text = json.dumps([1, sidecar["architecture"]], sort_keys=True)
            sidecar["fingerprint"] = checkpoints.hashlib.sha256(text.encode()).hexdigest()

        edit(folder, change)
        (text,) = refusals(folder)
        assert "networks are not those" in text

    @pytest.mark.parametrize("value", [None, [], 3, {"labels": 1}])
    def test_architecture_that_is_none(self, folder, value):
        edit(folder, lambda sidecar: sidecar.update(architecture=value))
        (text,) = refusals(folder)
        assert "networks are not those" in text

    def test_sidecar_nested_without_end(self, folder):
        (folder / "gan.json").write_text('{"weights": ' + "[" * 200_000)
        (text,) = refusals(folder)
        assert "cannot be read (values nested too deeply)" in text

    def test_format_of_another_version(self, folder):
        edit(folder, lambda sidecar: sidecar.update(format="fedscan StyleGAN2-ADA training, 9"))
        (text,) = refusals(folder)
        assert "has format 'fedscan StyleGAN2-ADA training, 9'" in text

    def test_configuration_of_another_version(self, folder, trained):
        edit(folder, lambda sidecar: sidecar["config"].update(speed=1))
        with pytest.raises(FedscanError, match="unknown key 'speed'"):
            load_checkpoint(folder)
        assert equal(load_checkpoint(folder, config=trained.config), trained)
        load_generator(folder)

    @pytest.mark.parametrize("value", [None, [], 3, "text", {}])
    def test_versions_that_are_none(self, folder, value):
        edit(folder, lambda sidecar: sidecar.update(format="another", versions=value))
        (text,) = refusals(folder)
        assert "Use the fedscan that wrote it (version unknown, sources " in text

    @pytest.mark.parametrize("value", [None, [], 3, "text"])
    def test_configuration_that_is_none(self, folder, trained, value):
        """Its keys have defaults, with which another training would go on."""
        edit(folder, lambda sidecar: sidecar.update(config=value))
        with pytest.raises(FedscanError, match=r"configuration is not one of .* \(it is missing\)"):
            load_checkpoint(folder)
        edit(folder, lambda sidecar: sidecar.pop("config"))
        with pytest.raises(FedscanError, match=r"configuration is not one of .* \(it is missing\)"):
            load_checkpoint(folder)
        assert equal(load_checkpoint(folder, config=trained.config), trained)

    def test_nothing_there(self, tmp_path):
        assert any("gan.json is missing" in text for text in refusals(tmp_path))
        (tmp_path / "17").mkdir()
        (tmp_path / "17" / "gan.json").write_text("{}")
        assert any(f"Name {tmp_path / '17'}, or another" in text for text in refusals(tmp_path))
        assert any("there is no such folder" in text for text in refusals(tmp_path / "none"))

    @pytest.mark.parametrize("name", ["network.pkl", "model.pt", "model.PTH", "last.ckpt"])
    def test_pickle_is_never_opened(self, tmp_path, name):
        marker = tmp_path / "marker"

        class Bomb:
            def __reduce__(self) -> tuple:
                return Path.touch, (marker,)

        path = tmp_path / name
        path.write_bytes(pickle.dumps(Bomb()))
        (text,) = refusals(path)
        assert "a pickle, which fedscan never opens" in text
        (text,) = refusals(tmp_path)
        assert f"{name} is a pickle" in text
        assert not marker.exists()

    def test_pickle_in_place_of_the_tensors_is_never_opened(self, folder, tmp_path):
        marker = tmp_path / "marker"

        class Bomb:
            def __reduce__(self) -> tuple:
                return Path.touch, (marker,)

        data = pickle.dumps(Bomb())
        weights_of(folder).write_bytes(data)
        assert all("damaged" in text for text in refusals(folder))
        digest = checkpoints.hashlib.sha256(data).hexdigest()
        edit(folder, lambda sidecar: sidecar["weights"].update(sha256=digest))
        assert all("damaged" in text for text in refusals(folder))
        assert not marker.exists()

    @pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"task": "classification"}', "\xff"])
    def test_foreign_sidecar(self, folder, text):
        (folder / "gan.json").write_text(text, encoding="latin-1")
        (said,) = refusals(folder)
        assert "sidecar" in said

    @pytest.mark.parametrize("place", [0, 9, -1, None])
    def test_damaged_tensors(self, folder, place):
        path = weights_of(folder)
        data = bytearray(path.read_bytes())
        if place is None:
            del data[-100:]
        else:
            data[place] ^= 1
        path.write_bytes(data)
        (text,) = refusals(folder)
        assert "the checkpoint is damaged" in text

    def test_tensors_left_behind(self, folder):
        weights_of(folder).unlink()
        (text,) = refusals(folder)
        assert "Copy all of the folder" in text

    def test_sidecar_cannot_name_files_elsewhere(self, folder, tmp_path):
        path = weights_of(folder).rename(tmp_path / "elsewhere.safetensors")
        edit(folder, lambda sidecar: sidecar["weights"].update(file=f"../{path.name}"))
        (text,) = refusals(folder)
        assert "cannot be read" in text

    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("a\0b", "no file has such a name"),
            ("\ud800", "cannot be read"),
            ("a\x1b[31m", "cannot be read"),
            ("a" * 300, "cannot be read"),
            ("..", "leads out of its folder"),
            ([], "cannot be read"),
        ],
    )
    def test_sidecar_that_names_no_possible_file(self, folder, name, words):
        edit(folder, lambda sidecar: sidecar["weights"].update(file=name))
        (text,) = refusals(folder)
        assert words in text
        assert str(folder) in text
        assert text.isprintable()

    def test_tensors_of_another_training(self, folder, tmp_path):
        """A whole file with other shapes: strictly loaded, so refused."""
        save_checkpoint(tmp_path / "other", start(z_dim=8))
        other = weights_of(tmp_path / "other")
        weights_of(folder).unlink()
        other.rename(folder / other.name)
        foreign = json.loads((tmp_path / "other" / "gan.json").read_text())["weights"]
        edit(folder, lambda sidecar: sidecar.update(weights=foreign))
        found = refusals(folder)
        assert len(found) == 2
        assert any("instead of" in text for text in found)
        assert any("the checkpoint's generator is not whole" in text for text in found)
