"""For each strategy, training in one process and training by Flower messages agree bit for bit."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_server_rounds import InProcessGrid, clients, no_waiting, simulated  # noqa: F401

from common.config.run_config import RunConfig
from common.data.phantoms.lesion_cohorts import write_hospital
from common.strategies.fedper import FedPer
from common.strategies.strategy import load_strategy, strategy_names
from common.tasks.classification import Classification
from common.tasks.task import SiteContext, read_run_config
from common.trouble import is_away
from server.rounds import federate
from simulations.arms import train_in_place

pytestmark = pytest.mark.usefixtures("in_simulation", "one_thread", "task_identity")

SITES, RUN = ("island", "north"), "1"  # as the contexts of the SuperNodes have it
OPTIONS = {  # so that they do something in few steps
    "apfl": {"alpha-rate": 0.1},
    "fedrep": {"head-steps": 1},
    "fine-tune": {"steps": 2},
}
OF_TWO = [n for n in strategy_names() if load_strategy(n).sites_needed(RunConfig()) <= len(SITES)]


@pytest.fixture
def config(tiny_cohort: Path, session_cache, tmp_path, monkeypatch):
    """Compose a run of two tiny sites."""
    monkeypatch.setenv("FEDSCAN_CACHE", str(session_cache))
    monkeypatch.setenv("FEDSCAN_RECORDS", str(tmp_path / "records"))

    def compose(strategy: str, rounds: int = 2, **values: object) -> RunConfig:
        options = {f"strategy.{key}": one for key, one in OPTIONS.get(strategy, {}).items()}
        return read_run_config(
            {
                **{"run.rounds": rounds, "run.output-dir": str(tmp_path)},
                **{"training.local-steps": 2, "training.batch-size": 4, "data.size": 16},
                "data.cohort-dir": str(tiny_cohort),
                "strategy.name": strategy,
                **options,
                **values,
            }
        )

    return compose


def by_messages(config: RunConfig) -> tuple[Path, Path]:
    """Run a federation; return the run's folder, and that above all sites' records."""
    federate(InProcessGrid(clients(simulated(), config)[0]), config, run_id="run")
    out = Path(config.run.output_dir)
    return out / "run", out / "records"


def in_one_process(config: RunConfig) -> tuple[Path, Path]:
    """Do the same without messages."""
    out = Path(config.run.output_dir)
    train_in_place(
        {site: [site] for site in SITES},
        {site: Path(config.data.cohort_dir) / site for site in SITES},
        config,
        place=SiteContext("all", SITES, torch.device("cpu")),
        folder=out / "here",
        records=(out / "own records", Path(RUN)),
    )
    return out / "here", out / "own records"


@pytest.mark.parametrize("name", OF_TWO)
def test_sites_in_one_process_learn_and_judge_the_same_bits_as_sites_asked_by_messages(
    name, config
):
    """The common model, each site's own where there is one, and what is predicted with it."""
    found = []
    for run in (by_messages, in_one_process):
        folder, records = run(config(name))
        files = [folder / "model.safetensors", folder / "model.json"]
        files += sorted(path for site in SITES for path in (records / site / RUN).iterdir())
        found.append([(path.name, path.read_bytes()) for path in files])
    assert found[0] == found[1]
    assert len(found[0]) == 2 + 2 * (3 if load_strategy(name).is_personal else 1)


TROUBLE = {
    **{"run.seed": 3, "run.min-replies": 1, "trouble.dropout": 0.3, "trouble.late": "north:2"},
    **{"trouble.slow": "island", "trouble.delay": 0.01, "trouble.label-noise": 0.3},
    **{"trouble.scanner-change": "island:2", "trouble.attackers": "north"},
    "trouble.attack": "scaled-noise",
}


def test_trouble_is_the_same_bits_in_one_process_as_by_messages(config):
    """A site that is away from a round goes on from its own last one, in both."""
    troubled = config("fedavg", rounds=3, **TROUBLE)
    away = {s: [k for k in (1, 2, 3) if is_away(troubled, s, k)] for s in SITES}
    assert away == {"island": [2], "north": [1]}
    (sent, _), (here, _) = by_messages(troubled), in_one_process(troubled)
    model = "model.safetensors"
    assert (sent / model).read_bytes() == (here / model).read_bytes()
    told = json.loads((sent / "summary.json").read_text())["sites"]
    assert {site: one["rounds_lost"] for site, one in told.items()} == {"island": 1, "north": 1}


def test_fednova_s_steps_travel_in_int8_well_enough_to_be_equal(config):
    models = set()
    for name in ("fedavg", "fednova"):
        folder, _ = by_messages(config(name, transport="int8"))
        models.add((folder / "model.safetensors").read_bytes())
        shutil.rmtree(folder.parent)
    assert len(models) == 1


@pytest.mark.parametrize("transport", ["float16", "int8"])
def test_scaffold_s_variates_travel_in_few_bits_nearly_as_they_are(transport, config):
    """Two ways of rounding, of the same training: a weight differs by little of what it moves."""
    start = Classification().build_model(config("scaffold")).state_dict()
    whole, few = (
        load_file(run(config("scaffold", transport=kind))[0] / "model.safetensors")
        for run, kind in ((in_one_process, "float32"), (by_messages, transport))
    )
    moved = sum(float((whole[name] - start[name]).square().sum()) for name in start)
    apart = sum(float((whole[name] - few[name]).square().sum()) for name in start)
    assert 0 < apart < 0.1**2 * moved


@pytest.fixture(scope="module")
def tiny_pictures(tmp_path_factory) -> Path:
    """Two hospitals with pictures of skin lesions, north with more of them."""
    folder = tmp_path_factory.mktemp("pictures")
    for name, patients in {"island": 8, "north": 24}.items():
        write_hospital(folder, name, seed=1005, patients=patients, size=16)
    return folder


@pytest.mark.parametrize("name", OF_TWO)
def test_every_strategy_trains_pictures_at_sites_that_make_different_numbers_of_steps(
    name, config, tiny_pictures
):
    values = {"study": "skin-lesions", "data.cohort-dir": str(tiny_pictures), "run.threads": 1}
    epochs = {"training.local-epochs": 1, "training.local-steps": 0, "training.batch-size": 16}
    folder, records = in_one_process(config(name, **values, **epochs))
    told = json.loads((folder / "summary.json").read_text())["sites"]
    assert told["north"]["n_train"] > 16 >= told["island"]["n_train"]
    assert all(0 < one["loss"] < 10 for one in told.values())
    for site in SITES:
        saved = (records / site / RUN / "model.safetensors").is_file()
        assert saved == load_strategy(name).is_personal


@pytest.mark.parametrize("run", [by_messages, in_one_process])
def test_a_site_is_tested_by_what_it_kept_of_the_best_round_and_not_of_the_last(
    run, config, monkeypatch
):
    """The first of three rounds is the best; each site has another head after each."""
    heads, judged, losses = defaultdict(list), {}, defaultdict(lambda: [1.0, 3.0, 2.0])
    train, evaluate = FedPer.train, Classification.evaluate

    def spied_train(self, site):
        done = train(self, site)
        heads[site.place.site].append(done.parameters["head.weight"].clone())
        return done

    def spied_evaluate(self, released, load, split, config, *, place, records=None):
        found = evaluate(self, released, load, split, config, place=place, records=records)
        if split == "test":
            judged[place.site] = {name: tensor.clone() for name, tensor in released.items()}
            return found
        return replace(found, metrics={**found.metrics, "loss": losses[place.site].pop(0)})

    monkeypatch.setattr(FedPer, "train", spied_train)
    monkeypatch.setattr(Classification, "evaluate", spied_evaluate)
    folder, records = run(config("fedper", rounds=3))
    common = load_file(folder / "model.safetensors")
    about = json.loads((folder / "model.json").read_text())
    assert about["round"] == 1
    assert about["at-sites"] == ["head.bias", "head.weight"]
    for site in SITES:
        own = load_file(records / site / RUN / "model.safetensors")
        first, _, last = heads[site]
        assert torch.equal(own["head.weight"], first)
        assert not torch.equal(first, last)
        assert all(torch.equal(own[name], tensor) for name, tensor in judged[site].items())
        assert all(torch.equal(own[name], tensor) for name, tensor in common.items())
        assert own.keys() == common.keys() | set(about["at-sites"])
        assert "at-sites" not in json.loads((records / site / RUN / "model.json").read_text())
