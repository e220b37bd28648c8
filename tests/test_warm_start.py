"""What a run begins with, and which layers of it learn how much."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from test_server_rounds import InProcessGrid, clients, simulated
from test_task_classification import CPU, NORTH, SITES, TINY, make_images, same, train
from tiny import run_config
from torch import Tensor

from clients.orders import require_first_weights
from clients.policy import SitePolicy
from common import messages
from common.aggregation import aggregate_round
from common.checkpoints import read_model, save_model
from common.config.run_config import RunConfig
from common.errors import ConfigError, FedscanError
from common.fingerprint import fingerprint
from common.local_round import first_weights
from common.models.parts import layers_of
from common.rounds import begin
from common.run_state import Update
from common.tasks.task import SiteContext, load_task, read_run_config
from common.training.classifier import _groups
from common.transport import received
from server.rounds import federate
from simulations.arms import train_in_place

pytestmark = pytest.mark.usefixtures("one_thread")

classification = load_task("classification")
HEAD = ("head.weight", "head.bias")


def config(**changes) -> RunConfig:
    return run_config(TINY, **changes)


def made(folder: Path, seed: int = 7, state: dict[str, Tensor] | None = None, **about) -> Path:
    """The folder of a model that another seed has made; some of what is said of it is otherwise."""
    run = config(seed=seed)
    state = state or classification.build_model(run).state_dict()
    classification.save(folder, state, state, run, round_number=1, place=NORTH)
    description, state = read_model(folder)
    save_model(folder, state, description | about)
    return folder


def started(path: Path, **changes) -> tuple[dict[str, Tensor], list[str]]:
    run = config(warm_start=str(path), **changes)
    classification.check(run)
    model = classification.build_model(run)
    notes = classification.warm_start(model, run)
    return model.state_dict(), notes


def refused(path: Path, **changes) -> str:
    with pytest.raises(ConfigError) as caught:
        started(path, **changes)
    return str(caught.value)


# What is taken over


def test_run_begins_with_all_weights_of_a_model_of_its_classes(tmp_path):
    state, notes = started(made(tmp_path))
    assert same(state, read_model(tmp_path)[1])
    assert not notes


def test_head_is_taken_over_by_the_names_of_classes(tmp_path):
    state, notes = started(made(tmp_path, classes=["male", "female"]))
    theirs = read_model(tmp_path)[1]
    assert torch.equal(state["head.weight"], theirs["head.weight"].flip(0))
    assert torch.equal(state["head.bias"], theirs["head.bias"].flip(0))
    assert not notes


def test_class_that_the_model_does_not_know_begins_anew_and_is_told(tmp_path):
    state, (note,) = started(made(tmp_path, classes=["unknown", "male"]))
    theirs, anew = read_model(tmp_path)[1], classification.build_model(config()).state_dict()
    for name in HEAD:
        assert torch.equal(state[name][1], theirs[name][1])
        assert torch.equal(state[name][0], anew[name][0])
    assert "begins anew for female" in note


def test_head_of_other_classes_begins_anew_whatever_their_number_and_the_body_does_not(tmp_path):
    theirs = classification.build_model(config(seed=7)).state_dict()
    theirs |= {"head.weight": torch.zeros(3, theirs["head.weight"].shape[1])}
    theirs |= {"head.bias": torch.zeros(3)}
    state, (note,) = started(made(tmp_path, state=theirs, classes=["a", "b", "c"]))
    anew = classification.build_model(config()).state_dict()
    for name, tensor in state.items():
        assert torch.equal(tensor, (anew if name in HEAD else theirs)[name]), name
    assert "the head begins anew" in note


def test_what_sites_have_kept_begins_anew_and_is_told(tmp_path):
    whole = classification.build_model(config(seed=7)).state_dict()
    parts = classification.parts(classification.build_model(config()))
    shared = {name: tensor for name, tensor in whole.items() if parts[name] != "norm"}
    kept = sorted(whole.keys() - shared.keys())
    state, (note,) = started(made(tmp_path, state=shared, **{"at-sites": kept}))
    anew = classification.build_model(config()).state_dict()
    for name, tensor in state.items():
        assert torch.equal(tensor, (whole if name in shared else anew)[name]), name
    assert "begin anew" in note and "sites of that run have kept theirs" in note
    made(tmp_path / "strict", state=shared)
    assert "it lacks " in refused(tmp_path / "strict")


@pytest.mark.parametrize("size", [24, 48])
def test_size_of_the_images_may_differ_and_is_told(size, tmp_path):
    _, (note,) = started(made(tmp_path), size=size)
    assert f"16 pixels or voxels a side, and these have {size}" in note


# What is refused


def test_shapes_that_differ_are_named_both(tmp_path):
    state = classification.build_model(config()).state_dict()
    state["features.2.weight"] = torch.zeros(8, 1, 3, 3, 3)
    told = refused(made(tmp_path, state=state))
    assert "features.2.weight has the shape (8, 1, 3, 3, 3), and (16, 1, 3, 3, 3)" in told


@pytest.mark.parametrize(
    ("about", "words"),
    [
        ({"classifier": "efficientnet-b0"}, "classifier 'efficientnet-b0'.*'small'"),
        ({"task": "generation"}, "task 'generation'"),
        ({"channels": 3}, "channels '3', and the run has 1"),
        ({"classes": None}, "which classes"),
    ],
)
def test_model_of_another_kind_is_refused(tmp_path, about, words):
    with pytest.raises(ConfigError, match=words):
        started(made(tmp_path, **about))


def test_weights_that_are_no_numbers_are_refused(tmp_path):
    state = classification.build_model(config()).state_dict()
    state["head.bias"] = torch.full((2,), float("nan"))
    assert "head.bias holds what is no finite weight" in refused(made(tmp_path, state=state))


def test_pickles_are_never_opened(tmp_path):
    (tmp_path / "model.pt").write_bytes(b"\x80\x04.")
    assert "model.pt is a pickle" in refused(tmp_path)
    assert "this is a pickle" in refused(tmp_path / "model.pt")


def test_folder_above_the_model_s_names_the_one_inside(tmp_path):
    assert f"Name {made(tmp_path / 'all')}" in refused(tmp_path)
    assert "there is no such folder" in refused(tmp_path / "nothing")


@pytest.mark.parametrize("raw", [b"", b"\xff" * 40, b"\x02" + b"\0" * 7 + b"{}"])
def test_damaged_or_foreign_files_are_refused(tmp_path, raw):
    (tmp_path / "model.safetensors").write_bytes(raw)
    assert "damaged or not fedscan's" in refused(tmp_path)


def test_pretrained_file_is_for_networks_that_have_such():
    with pytest.raises(ConfigError, match=r"which is for model.classifier efficientnet-b0"):
        read_run_config({"model.warm-start": "/w.safetensors"})


def test_path_must_be_absolute():
    with pytest.raises(ConfigError, match=r"model.warm-start = 'runs/1': accepted is an absolute"):
        read_run_config({"model.warm-start": "runs/1"})


# A federation that begins with it


def fedbn_run(tmp_path: Path, cohort: Path, transport: str, **changes) -> RunConfig:
    values = {
        **{"run.rounds": 2, "run.evaluate-every": 1, "run.output-dir": str(tmp_path / "out")},
        **{"training.local-steps": 2, "training.batch-size": 4, "data.size": 16},
        **{"data.cohort-dir": str(cohort), "strategy.name": "fedbn", "transport": transport},
        "model.warm-start": str(made(tmp_path / "start")),
    }
    return read_run_config(values | changes)


@pytest.mark.usefixtures("in_simulation", "task_identity")
@pytest.mark.parametrize("transport", ["float32", "float16", "int8"])
def test_first_order_brings_all_and_later_ones_what_is_shared(
    transport, tiny_cohort, session_cache, tmp_path, monkeypatch
):
    """And what a site starts from, shared or not, is the warm start as it travelled."""
    monkeypatch.setenv("FEDSCAN_CACHE", str(session_cache))
    monkeypatch.setenv("FEDSCAN_RECORDS", str(tmp_path / "records"))
    run = fedbn_run(tmp_path, tiny_cohort, transport)
    started_from: list[dict[str, Tensor]] = []
    fit = classification.fit

    def seen(model, *arguments, **named):
        if named["round_number"] == 1:
            started_from.append({n: t.clone() for n, t in model.state_dict().items()})
        return fit(model, *arguments, **named)

    monkeypatch.setattr(classification, "fit", seen)
    grid = InProcessGrid(clients(simulated(), run)[0])
    federate(grid, run, run_id="run")
    orders = [m for m in grid.requests if m.metadata.message_type == messages.TRAIN]
    sent = [messages.unpack(order.content[messages.ARRAYS]) for order in orders]
    parts = classification.parts(classification.build_model(run))
    shared = {name for name, part in parts.items() if part != "norm"}
    assert [set(received(one)) for one in sent[:2]] == [set(parts)] * 2
    later = [{name.removesuffix("/scale") for name in one} for one in sent[2:]]
    assert later == [shared] * 2
    wanted = {
        n: t.to(sent[0][n].dtype).float() for n, t in read_model(tmp_path / "start")[1].items()
    }
    assert len(started_from) == 2
    assert all(same(one, wanted) for one in started_from)


@pytest.mark.usefixtures("in_simulation", "task_identity")
def test_sites_in_one_process_begin_with_the_same_bits(
    tiny_cohort, session_cache, tmp_path, monkeypatch
):
    monkeypatch.setenv("FEDSCAN_CACHE", str(session_cache))
    monkeypatch.setenv("FEDSCAN_RECORDS", str(tmp_path / "records"))
    run = fedbn_run(tmp_path, tiny_cohort, "float32")
    federate(InProcessGrid(clients(simulated(), run)[0]), run, run_id="run")
    train_in_place(
        {site: [site] for site in SITES},
        {site: tiny_cohort / site for site in SITES},
        run,
        place=SiteContext("all", SITES, CPU),
        folder=tmp_path / "here",
        records=(tmp_path / "own records", Path("here")),
    )
    one, other = (read_model(folder) for folder in (tmp_path / "out" / "run", tmp_path / "here"))
    assert same(one[1], other[1])
    assert one[0]["at-sites"]


def test_deployed_site_accepts_a_warm_start_by_its_fingerprint_alone(tmp_path):
    run = config(warm_start=str(made(tmp_path)), name="fedbn")
    state = begin(run, SiteContext("server", SITES, CPU))
    sent = {**state.unshared, **state.shared}
    expected = first_weights(classification, classification.build_model(run), run, SITES)
    assert sent.keys() == expected.keys()
    with pytest.raises(FedscanError, match=fingerprint(sent)):
        require_first_weights("north", sent, expected, [])
    require_first_weights("north", sent, expected, [fingerprint(sent)])


def test_run_without_a_warm_start_brings_what_is_shared_alone():
    state = begin(config(name="fedbn"), SiteContext("server", SITES, CPU))
    assert not state.unshared
    assert "head.weight" in state.shared and "features.3.weight" not in state.shared


# Which layers learn, and how much


def test_where_the_head_alone_learns_nothing_else_moves():
    data = make_images(12, seed=0)
    before = classification.build_model(config()).state_dict()
    after, done = train(data, config(trains="head", weight_decay=0.3))
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    assert moved == set(HEAD)
    assert {name.partition("/")[0] for name in done.private} == set(HEAD)


def test_head_learns_the_same_where_features_are_computed_once():
    """A term in the loss, however small, is for a strategy that sees every batch."""
    data = make_images(12, seed=0)
    values = {"trains": "head", "augment": "none", "batch_size": 12, "local_steps": 3}
    once, _ = train(data, config(**values))
    plain, _ = train(
        data, config(**values, name="fedprox", **{"strategy.mu": 1e-12})
    )  # a term in the loss
    for name in HEAD:
        torch.testing.assert_close(once[name], plain[name], atol=1e-5, rtol=1e-4)


def test_frozen_weights_do_not_drift_by_the_rounding_of_a_mean():
    run = config(trains="head")
    place = SiteContext("server", ("a", "b", "c"), CPU)
    state = begin(run, place)
    before = {name: tensor.clone() for name, tensor in state.shared.items()}

    class Sites:
        names = place.sites

        def train(self, number, weights, state):
            return {
                site: Update(count, {}, {n: t + k * (n in HEAD) for n, t in weights.items()})
                for k, (site, count) in enumerate(zip(self.names, (7, 11, 13), strict=True))
            }

        def record(self, *_):
            pass

        def settle(self, *_):
            pass

    shared, _ = aggregate_round(1, state, run, Sites())
    assert all(torch.equal(shared[name], before[name]) == (name not in HEAD) for name in before)


@pytest.mark.parametrize(
    "values",
    [
        {"model.classifier": "small"},
        {"model.classifier": "slices"},
        {"model.classifier": "small", "study": "skin-lesions"},
        {"model.classifier": "efficientnet-b0", "study": "skin-lesions"},
    ],
    ids=["volumes", "slices", "pictures", "efficientnet"],
)
def test_layers_are_all_parameters_once_from_the_images_up(values):
    run = RunConfig.from_flower({**TINY, "data.size": 32, **values})
    model = classification.build_model(run).eval()
    layers = layers_of(model)
    assert sum(map(len, layers)) == len({id(p) for layer in layers for p in layer})
    assert {id(p) for layer in layers for p in layer} == {id(p) for p in model.parameters()}
    assert [id(p) for p in layers[-1]] == [id(p) for p in model.head.parameters()]
    reached: list[int] = []
    number = {id(layer[0]): k for k, layer in enumerate(layers)}
    for module in model.modules():
        own = list(module.parameters(recurse=False))
        if own and id(own[0]) in number:
            layer = number[id(own[0])]
            module.register_forward_hook(lambda *_, layer=layer: reached.append(layer))
    data = classification_images(run)
    model(data)
    assert reached == list(range(len(layers)))


def classification_images(run: RunConfig) -> Tensor:
    side, study = run.data.size, run.read_study()
    shape = (3, side, side) if study.images.view == "picture" else (1, side, side, side)
    if run.model.classifier == "slices":
        shape = (1, 5, side, side)
    return torch.from_numpy(np.random.default_rng(0).random((2, *shape), np.float32))


def test_learning_rate_falls_by_the_decay_from_layer_to_layer():
    groups = _groups(classification.build_model(config()), 0.5)
    assert [group["share"] for group in groups] == [0.25, 0.5, 1.0]
    assert len(groups[0]["params"]) == 4  # a convolution with its normalization


def test_first_step_of_a_layer_is_its_share_of_the_learning_rate():
    """AdamW's first step is the learning rate in every direction with a gradient."""
    data = make_images(12, seed=0)
    values = {"local_steps": 1, "rounds": 1, "weight_decay": 0.0, "batch_size": 12}
    before = classification.build_model(config()).state_dict()
    whole, _ = train(data, config(**values))
    part, _ = train(data, config(**values, layer_decay=0.5))
    for name, share in [("features.2.weight", 0.25), ("features.5.weight", 0.5), (HEAD[0], 1.0)]:
        lengths = [(one[name] - before[name]).norm() for one in (part, whole)]
        assert lengths[0] / lengths[1] == pytest.approx(share, rel=1e-3)


def test_site_s_least_learning_rate_is_that_of_the_lowest_layer_too():
    """Else a decay would give away what a least learning rate keeps."""
    policy = SitePolicy()
    assert not policy.objections(config(layer_decay=0.5))
    (told,) = policy.objections(config(layer_decay=1e-3))  # 3e-3 · 1e-6
    assert "lowest layer = 3e-09" in told
    assert not policy.objections(config(layer_decay=1e-3, trains="head"))


def test_moments_go_on_in_every_layer():
    data = make_images(12, seed=0)
    values = {"layer_decay": 0.5, "batch_size": 12, "augment": "none"}
    whole, _ = train(data, config(**values, rounds=1, local_steps=4))
    run = config(**values, rounds=2, local_steps=2)
    model = classification.build_model(run)
    _, first = train(data, run, model=model)
    parts, _ = train(data, run, model=model, round_number=2, private=first.private)
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor, atol=1e-5, rtol=1e-4)


def test_keys_of_transfer_have_no_effect_on_generators():
    for key, value in [("model.trains", "head"), ("training.layer-decay", 0.5)]:
        with pytest.raises(ConfigError, match=f"{key} has no effect with task 'generation'"):
            read_run_config({"task": "generation", key: value})


def test_pretrained_norms_can_be_asked_for_without_the_file(tmp_path):
    """A run that goes on from one with pretrained weights needs its layers, at sites as well."""
    values = {"study": "skin-lesions", "model.classifier": "efficientnet-b0"}
    frozen = {**values, "model.normalization": "frozen", "model.warm-start": str(tmp_path)}
    run = read_run_config(frozen)
    state = classification.build_model(run).state_dict()
    assert "same_padding" in state
    classification.save(tmp_path, state, state, run, round_number=1, place=NORTH)
    assert not classification.warm_start(classification.build_model(run), run)
    plain = read_run_config({**frozen, "model.normalization": "group"})
    with pytest.raises(ConfigError, match=r"pretrained 'True'.*Set model.normalization"):
        classification.warm_start(classification.build_model(plain), plain)
    shutil.rmtree(tmp_path)
    with pytest.raises(ConfigError, match="no effect with classifier 'small'"):
        read_run_config({"model.normalization": "frozen"})
