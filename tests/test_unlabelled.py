"""Images without a label, and sites whose labels a run may not use."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_data_image_table import HEADER, STUDY, put
from test_server_rounds import InProcessGrid, clients, simulated
from tiny import dataset

from clients.orders import require_explained
from common.data.image_table import NO_CLASS, read_image_table
from common.data.site_data import read_table
from common.data.unlabelled import UseOfLabels
from common.errors import ConfigError, DataContractError, FedscanError
from common.local_round import _effective_people, train_one_round
from common.metrics_log import read_rows
from common.rounds import begin, require_sites
from common.run_folder import METRICS
from common.strategies.strategy import load_strategy, strategy_names
from common.studies.study import read_study
from common.tasks.task import SiteContext, load_task, read_run_config, survey
from server.rounds import federate
from simulations.arms import train_in_place

pytestmark = pytest.mark.usefixtures("one_thread")

SITES = ("island", "north")
SHORT = {
    **{"run.rounds": 2, "run.evaluate-every": 1, "data.size": 16},
    **{"training.local-steps": 2, "training.batch-size": 4},
}
ADAPTING = [name for name in strategy_names() if load_strategy(name).uses_unlabelled]
KEPT, HIDDEN = UseOfLabels(keep=True), UseOfLabels(hide=True)


# Tables of pictures


def with_splits(tmp_path: Path):
    rows = [
        ("a.png", "mild", "p1", "", "", "train"),
        ("b.png", "", "p2", "", "", "train"),
        ("c.png", "", "p3", "", "", "test"),
        ("d.png", "none", "p4", "", "", "val"),
        ("e.png", "", "p5", "", "", ""),
        ("a.png", "", "p1", "", "", "train"),
        ("f.png", "none", "p6", "", "", "test"),
    ]
    put(tmp_path, rows, header=(*HEADER, "split"))
    return read_image_table(tmp_path, "north", STUDY)


def test_rows_of_train_without_a_label_are_left_out(tmp_path):
    table = with_splits(tmp_path)
    assert table.files == ("a.png", "d.png", "f.png")
    assert table.left_out == {"no label": 4}
    assert UseOfLabels().of(table) is table


def test_rows_of_train_without_a_label_are_kept_where_a_strategy_uses_them(tmp_path):
    table = KEPT.of(with_splits(tmp_path))
    assert table.files == ("a.png", "d.png", "f.png", "b.png")
    assert table.labels.tolist() == [1, 0, 0, NO_CLASS]
    assert table.splits.tolist() == ["train", "val", "test", "train"]
    assert table.left_out == {"no label": 3}
    assert len(set(table.groups.tolist())) == 4


def test_a_row_without_label_goes_with_its_person_and_never_out_of_val_or_test(tmp_path):
    rows = [
        (f"{i:02d}-{k}.png", ("mild", "none")[i % 2] if not k else "", f"p{i:02d}", "", "")
        for i in range(10)
        for k in range(2)
    ]
    rows.append(("99.png", "", "p99", "", ""))
    plain = read_image_table(put(tmp_path, rows), "north", STUDY)
    kept = KEPT.of(plain)
    trains = {p for p, s in zip(plain.persons, plain.splits, strict=True) if s == "train"}
    found = [p for p, label in zip(kept.persons, kept.labels, strict=True) if label == NO_CLASS]
    assert sorted(found) == sorted(trains | {"p99"})
    groups = dict(zip(plain.persons, plain.groups.tolist(), strict=True))
    for person, group in zip(kept.persons, kept.groups.tolist(), strict=True):
        assert groups.get(person, group) == group


def test_labels_of_a_hidden_site_are_gone_from_train_and_val_alone(tmp_path):
    table = HIDDEN.of(with_splits(tmp_path))
    assert table.files == ("a.png", "f.png")
    assert table.labels.tolist() == [NO_CLASS, 0]
    assert table.splits.tolist() == ["train", "test"]


# Volumes


def edited(cohort: Path, site: str, edit) -> None:
    """Change the rows of a hospital's participants.tsv: id, sex, split."""
    path = cohort / site / "participants.tsv"
    header, *rows = [line.split("\t") for line in path.read_text().splitlines()]
    at = {name: header.index(name) for name in ("participant_id", "sex", "split")}
    for row in rows:
        row[at["sex"]] = edit(row[at["sex"]], row[at["split"]])
    path.write_text("\n".join("\t".join(row) for row in [header, *rows]) + "\n")


@pytest.fixture
def cohort(tiny_cohort: Path, tmp_path) -> Path:
    """The tiny cohort, to be changed."""
    return Path(shutil.copytree(tiny_cohort, tmp_path / "cohort"))


def without_training_labels(sex: str, split: str) -> str:
    return "n/a" if split != "test" else sex


def test_a_volume_without_a_label_is_kept_where_a_strategy_uses_it(cohort, session_cache):
    edited(cohort, "island", without_training_labels)
    where = ("island", cohort / "island", "train")
    config = read_run_config({**SHORT, "strategy.name": "coral"})
    data = load_task("classification").open_split(*where, config, session_cache)
    assert set(data.labels.tolist()) == {NO_CLASS}
    assert not len(data.labelled())
    assert all("sex" not in told for told in data.conditions)
    counts = survey("island", cohort / "island", config)
    assert (counts["n_val"], counts["n_train"]) == (0, len(data))


def test_a_site_without_labels_is_told_which_strategies_are_for_it(cohort):
    edited(cohort, "island", without_training_labels)
    words = f"strategy.name {' or '.join(ADAPTING)}"
    with pytest.raises(DataContractError, match=words):
        survey("island", cohort / "island", read_run_config(SHORT))


def test_relatives_of_somebody_held_out_do_not_train(cohort):
    """Without given splits; a family is on one side, whoever of it has a label."""
    path = cohort / "north" / "participants.tsv"
    header, *rows = [line.split("\t") for line in path.read_text().splitlines()]
    drop = header.index("split")
    for number, row in enumerate(rows):
        row[drop] = f"family{number // 2}"
        row[header.index("sex")] = row[header.index("sex")] if number % 2 else "n/a"
    header[drop] = "family"
    path.write_text("\n".join("\t".join(row) for row in [header, *rows]) + "\n")
    text = (
        'name = "families"\n[images]\nstorage = "bids"\nchannels = 1\nsize = 16\n[label]\n'
        'column = "sex"\nclasses = { female = ["F"], male = ["M"] }\n[groups]\nalso = ["family"]\n'
    )
    plain = read_table(read_study(text), "north", cohort / "north")
    kept = KEPT.of(plain)
    split_of = dict(zip(plain.groups.tolist(), plain.splits.tolist(), strict=True))
    found = kept.groups[kept.labels == NO_CLASS].tolist()
    assert found
    assert {split_of[group] for group in found} == {"train"}
    assert not kept.leaks()


# Runs


def values_of(name: str) -> dict[str, object]:
    return {**SHORT, "strategy.name": name, "data.unlabelled": "island"}


def trained(cohort: Path, values: dict, out: Path, sites=SITES) -> tuple[bytes, list[dict]]:
    """Train a federation in this process; return its model and rows of results."""
    rows = train_in_place(
        {site: [site] for site in sites},
        {site: cohort / site for site in SITES},
        read_run_config(values),
        place=SiteContext("all", SITES, torch.device("cpu")),
        folder=out / "model",
        records=(out / "records", Path("run")),
    )
    return (out / "model" / "model.safetensors").read_bytes(), rows


@pytest.mark.parametrize("name", ["fedavg", *ADAPTING])
def test_labels_of_a_hidden_site_change_no_bit(name, cohort, session_cache, tmp_path, monkeypatch):
    monkeypatch.setenv("FEDSCAN_CACHE", str(session_cache))
    before = trained(cohort, values_of(name), tmp_path / "a")
    swap = {"M": "F", "F": "M"}
    edited(cohort, "island", lambda sex, split: swap[sex] if split != "test" else sex)
    after = trained(cohort, values_of(name), tmp_path / "b")
    assert before[0] == after[0]
    # NaN is a value that a metric may have.
    assert repr(before[1]) == repr(after[1])
    assert {r["tested_on"] for r in before[1] if r["split"] == "val"} == {"north"}
    assert {r["tested_on"] for r in before[1] if r["split"] == "test"} == set(SITES)


@pytest.mark.parametrize("name", ADAPTING)
def test_images_of_a_hidden_site_are_learned_from(
    name, tiny_cohort, session_cache, tmp_path, monkeypatch
):
    monkeypatch.setenv("FEDSCAN_CACHE", str(session_cache))
    with_island, _ = trained(tiny_cohort, values_of(name), tmp_path / "a")
    baseline, _ = trained(tiny_cohort, values_of("fedavg"), tmp_path / "b")
    assert with_island != baseline


def test_a_strategy_that_needs_labels_is_the_other_sites_alone(
    tiny_cohort, session_cache, tmp_path, monkeypatch
):
    monkeypatch.setenv("FEDSCAN_CACHE", str(session_cache))
    both, _ = trained(tiny_cohort, values_of("fedavg"), tmp_path / "a")
    alone = {**SHORT, "strategy.name": "fedavg"}
    north, _ = trained(tiny_cohort, alone, tmp_path / "b", sites=("north",))
    assert both == north


def test_a_pool_trains_on_the_images_whose_labels_it_may_use(
    tiny_cohort, session_cache, tmp_path, monkeypatch
):
    monkeypatch.setenv("FEDSCAN_CACHE", str(session_cache))
    models = []
    for out, members, hidden in (("a", SITES, "island"), ("b", ("north",), "")):
        config = read_run_config({**SHORT, "data.unlabelled": hidden})
        train_in_place(
            {"all": members},
            {site: tiny_cohort / site for site in SITES},
            config,
            place=SiteContext("all", SITES, torch.device("cpu")),
            folder=tmp_path / out,
            records=(tmp_path / "records", Path(out)),
        )
        models.append(load_file(tmp_path / out / "model.safetensors"))
    one, other = models
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.usefixtures("in_simulation", "task_identity")
@pytest.mark.parametrize("name", ["fedavg", *ADAPTING])
def test_sites_asked_by_messages_learn_the_same_bits(
    name, tiny_cohort, session_cache, tmp_path, monkeypatch
):
    monkeypatch.setenv("FEDSCAN_CACHE", str(session_cache))
    monkeypatch.setenv("FEDSCAN_RECORDS", str(tmp_path / "records"))
    out = {"run.output-dir": str(tmp_path), "data.cohort-dir": str(tiny_cohort)}
    config = read_run_config({**values_of(name), **out})
    federate(InProcessGrid(clients(simulated(), config)[0]), config, run_id="run")
    here, _ = trained(tiny_cohort, values_of(name), tmp_path / "here")
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == here
    rows = list(read_rows(tmp_path / "run" / METRICS))
    judged = {
        split: {r.site for r in rows if r.split == split and r.name == "loss"}
        for split in ("val", "test")
    }
    assert judged == {"val": {"north"}, "test": set(SITES)}


@pytest.mark.usefixtures("in_simulation", "task_identity", "bounded_policy")
@pytest.mark.parametrize("name", ["fedavg", *ADAPTING])
def test_a_site_that_bounds_how_far_weights_move_takes_part_without_labels(
    name, cohort, session_cache, tmp_path, monkeypatch
):
    """Under a policy, and for those that learn from it a site whose table holds no label."""
    monkeypatch.setenv("FEDSCAN_CACHE", str(session_cache))
    monkeypatch.setenv("FEDSCAN_RECORDS", str(tmp_path / "records"))
    out = {"run.output-dir": str(tmp_path), "data.cohort-dir": str(cohort)}
    values = {**values_of(name), **out, "run.rounds": 3}
    if name != "fedavg":
        edited(cohort, "island", lambda sex, split: "n/a")
        values["data.unlabelled"] = ""
    config = read_run_config(values)
    federate(InProcessGrid(clients(simulated(), config)[0]), config, run_id="run")
    assert (tmp_path / "run" / "model.safetensors").is_file()


@pytest.fixture
def bounded_policy(monkeypatch, tmp_path):
    """A deployed site's bound on movement, without its bounds on people."""
    policy = tmp_path / "policy.toml"
    policy.write_text(
        "min-participants = 1\nmin-batch-size = 1\nshare-moments = true\nmax-movement = 4.0\n"
        "private-seed = false\n"
    )
    monkeypatch.setenv("FEDSCAN_POLICY", str(policy))


def test_movement_is_bounded_also_at_a_site_without_labels():
    before = {"head": torch.ones(100), "body": torch.ones(100)}
    largest = dict.fromkeys(before, torch.zeros(()))
    far = before | {"head": before["head"] + 5}
    near = before | {"head": before["head"] + 3}
    require_explained("north", near, before, largest, 4.0, untrained=True)
    with pytest.raises(FedscanError, match="head has moved"):
        require_explained("north", far, before, largest, 4.0, untrained=True)
    with pytest.raises(FedscanError, match="head has moved"):
        require_explained("north", near, before, largest, 4.0)


def test_statistics_do_not_loosen_the_bound_on_weights():
    before = {"sums": torch.zeros(100), "body": torch.ones(100), "bias": torch.ones(1)}
    largest = {"sums": torch.tensor(1e6), "body": torch.tensor(1.0), "bias": torch.tensor(0.01)}
    far = before | {"bias": before["bias"] + 10}
    with pytest.raises(FedscanError, match="bias has moved"):
        require_explained("north", far, before, largest, 4.0, exempt=["sums"])


# What a run config may ask


def test_a_hidden_site_that_there_is_not_is_refused():
    config = read_run_config({**SHORT, "data.unlabelled": "islnd"})
    with pytest.raises(ConfigError, match=r"no site 'islnd': accepted are island, north"):
        begin(config, SiteContext("server", SITES, torch.device("cpu")))


@pytest.mark.parametrize("names", ["a a", "../a", "a,b"])
def test_what_names_no_sites_is_refused(names):
    with pytest.raises(ConfigError, match=r"data\.unlabelled = .*: accepted is names of sites"):
        read_run_config({"data.unlabelled": names})


def test_generators_have_no_labels_to_do_without():
    with pytest.raises(ConfigError, match=r"data\.unlabelled has no effect with task 'generation'"):
        read_run_config({"task": "generation", "data.unlabelled": "north"})


def test_labels_that_are_known_are_all_of_a_usual_data_set(tiny_cohort, session_cache):
    config = read_run_config(SHORT)
    where = ("north", tiny_cohort / "north", "train")
    data = load_task("classification").open_split(*where, config, session_cache)
    assert data.labelled() is data
    assert np.all(data.labels >= 0)


# What a site that may not learn keeps, and what it counts for


def test_a_site_that_may_not_learn_keeps_what_the_first_order_brings_it_to_keep(tmp_path):
    """Of a warm start that FedBN goes on with: normalizations that no later order brings."""
    values = {**SHORT, "strategy.name": "fedbn", "data.unlabelled": "island"}
    config = read_run_config(values)
    task, place = load_task("classification"), SiteContext("island", SITES, torch.device("cpu"))
    model = task.build_model(config, place)
    received = {name: torch.full_like(t, 0.5) for name, t in task.parameters(model).items()}
    images = dataset(np.random.default_rng(0).random((4, 1, 16, 16, 16), np.float32))
    done = train_one_round(
        *(task, model, images, config),
        received=received,
        private={},
        place=place,
        round_number=1,
    )
    parts = task.parts(model)
    assert done.sent.keys() == {name for name in received if parts[name] != "norm"}
    assert done.private.keys() == {f"own/{name}" for name in received if parts[name] == "norm"}


def test_only_sites_that_learn_count_as_sites_that_a_strategy_needs():
    values = {"strategy.name": "krum", "data.unlabelled": "a"}
    with pytest.raises(ConfigError, match="needs 5 sites and there are 4"):
        require_sites(read_run_config(values), ("a", "b", "c", "d", "e"))


@pytest.mark.parametrize("strategy", ["fedavg", "dann"])
def test_a_run_in_which_nobody_has_a_label_is_refused_before_the_start(strategy):
    values = {"strategy.name": strategy, "data.unlabelled": "a b"}
    with pytest.raises(ConfigError, match="leaves no site with labels"):
        require_sites(read_run_config(values), ("a", "b"))


def test_a_site_is_not_centered_between_classes_that_are_hidden():
    values = {"model.classifier": "slices", "model.adapt": "center", "data.unlabelled": "a"}
    with pytest.raises(ConfigError, match=r"data\.unlabelled hides those of a: set model\.adapt"):
        read_run_config(values)


def test_sums_over_batches_count_as_over_as_many_people_as_the_rarest_kind_stands_for():
    """One person of a class that is in every other batch is not one of eleven people."""
    images = np.zeros((12, 1, 4, 4, 4), np.float32)
    people = [f"p{k}" for k in range(11)]
    data = dataset(images, [0] * 10 + [1, 1], [*people[:10], people[10], people[10]])
    assert data.people == 11
    assert _effective_people(data) == 2
