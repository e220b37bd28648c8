"""A generator of one place with differential privacy: what is promised, told, kept and refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from test_simulations_gan import CHANGES, begin, cache, rows

from common.errors import ConfigError, FedscanError
from simulations.gan import private
from simulations.gan import summary as judged
from simulations.gan.plan import Request, resolve
from simulations.gan.private import NOISE, Private
from simulations.gan.sites import open_sites
from simulations.ledger import read_ledger

pytestmark = pytest.mark.usefixtures("one_thread", "quick_default")
__all__ = ["begin", "cache"]  # fixtures
STEPS = 3


@pytest.fixture(scope="module")
def made(begin, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    out = tmp_path_factory.mktemp("private") / "gan"
    changes = {**CHANGES, "kimg": STEPS * 4 / 1000, "label-kinds": "sex,site"}
    return out, begin(out, changes=changes, sites=("north",), epsilon=8.0)


def test_epsilon_is_told_by_summary_manifest_and_ledger(made, tiny_cohort):
    folder, summary = made
    told = summary["privacy"]
    assert (told["unit"], told["epsilon"], told["secret_noise"]) == ("person", 8.0, True)
    assert told["sites"].keys() == {"north"}
    assert 0 < told["sites"]["north"]["epsilon"] <= 8.0
    own = open_sites("brain-sex", {"north": tiny_cohort / "north"}, "train", 16)["north"]
    assert told["sites"]["north"]["delta"] == 1 / (10 * own.people)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["privacy"] == {"epsilon": 8.0, "delta": 0.0}
    ledger = read_ledger(folder)
    assert ledger["privacy"] == told
    assert any("ε = 8" in line for line in ledger["protected_by"])


def test_the_ledger_knows_what_a_training_promises_that_has_not_ended(made, tmp_path):
    shutil.copy(made[0] / "manifest.json", tmp_path)
    ledger = read_ledger(tmp_path)
    assert ledger["privacy"]["epsilon"] == 8.0
    assert ledger["privacy"]["secret_noise"] is True
    assert not any("No differential privacy" in line for line in ledger["not_protected"])


def test_nothing_of_real_images_is_measured_or_kept_beside_the_networks(made):
    folder, _ = made
    names = {row["name"] for row in rows(folder)}
    assert "loss-generator" in names
    assert not {"loss-discriminator", "sign-real", "r1-penalty"} & names
    about = json.loads((folder / "gan.json").read_text())
    assert about["data"] is None
    labels = dict(map(tuple, about["architecture"]["labels"]))
    assert sorted(labels["sex"]) == ["female", "male"]


def test_the_secret_is_forgotten_with_the_last_iteration_whatever_becomes_of_the_summary(
    begin, tmp_path, monkeypatch
):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(judged, "summarize", interrupted)
    with pytest.raises(KeyboardInterrupt):
        begin(tmp_path / "gan", steps=1, sites=("north",), epsilon=8.0)
    assert (tmp_path / "gan" / "gan.json").is_file()
    assert not (tmp_path / "gan" / NOISE).exists()


@pytest.mark.parametrize("privacy", [[8.0], {"epsilon": "much"}], ids=str)
def test_a_manifest_whose_promise_cannot_be_read_is_refused(made, tmp_path, privacy):
    about = json.loads((made[0] / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({**about, "privacy": privacy}))
    with pytest.raises(ConfigError):
        plan = resolve(Request(tmp_path, resume=True))
        plan.private.require(plan.config, 8)


def test_the_secret_of_the_noise_is_the_folders_own_and_forgotten_at_the_end(made, tmp_path):
    assert not (made[0] / NOISE).exists()
    promise, seeds = Private(8.0, 0.0, "brain-sex"), []
    config = resolve(Request(tmp_path / "none", changes=CHANGES, epsilon=8.0)).config
    for name in ("one", "other"):
        private.begin(tmp_path / name)
        assert (tmp_path / name / NOISE).stat().st_mode & 0o777 == 0o600
        seeds.append({promise.mechanism(config, 8, tmp_path / name).seed for _ in range(2)})
    assert len(seeds[0]) == len(seeds[1]) == 1 and seeds[0] != seeds[1]
    with pytest.raises(FedscanError, match="does not hold the noise's seed"):
        promise.mechanism(config, 8, tmp_path)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"changes": {"kimg": 1.0}}, "another kimg"),
        ({"epsilon": 4.0}, "another epsilon"),
        ({"delta": 1e-3}, "another delta"),
    ],
    ids=str,
)
def test_a_training_goes_on_with_the_noise_that_it_began_with(made, asked, words):
    with pytest.raises(ConfigError, match=words):
        resolve(Request(made[0], resume=True, **asked))


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"epsilon": 8.0, "changes": {"r1-gamma": 0.1}}, "r1-gamma = 0.1 with differential"),
        ({"epsilon": 8.0, "changes": {"augment": "adaptive"}}, "augment = adaptive"),
        ({"delta": 1e-3}, "--delta has no effect without --epsilon"),
    ],
    ids=str,
)
def test_what_is_not_accounted_for_is_refused(tmp_path, asked, words):
    with pytest.raises(ConfigError, match=words):
        resolve(Request(tmp_path / "gan", **asked))


def test_a_delta_above_one_over_the_people_is_refused():
    config = resolve(Request(Path("none"), changes=CHANGES, epsilon=8.0)).config
    with pytest.raises(ConfigError, match=r"delta = 0\.5"):
        Private(8.0, 0.5, "brain-sex").require(config, 8)
