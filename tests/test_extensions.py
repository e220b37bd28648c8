"""Code of other packages: loaded where its name is allowed, and as good as fedscan's own."""

from __future__ import annotations

import csv
import importlib
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import TINY
from processes import ROOT
from tiny import run_config
from torch import nn
from typer.testing import CliRunner

from clients.app import app
from clients.policy import SIMULATED, SitePolicy
from common import extensions, messages
from common.aggregation import aggregate_round
from common.averages import weighted_mean
from common.config.run_config import extensions_of
from common.data.site_data import reader_of
from common.disclosure import Disclosure
from common.errors import ConfigError, SecureSumError
from common.extensions import allow, allow_only
from common.imaging.bids import list_sites
from common.models import outside
from common.run_state import RunState, Update
from common.strategies.strategy import SiteUpdate, load_strategy
from common.studies.study import read_study
from common.summed import Change, layout_of, update_of, vector_of
from common.tasks import classifier_networks
from common.tasks.task import SiteContext, load_task, read_run_config
from simulations.arms import train_in_place
from simulations.cli import app as cli
from simulations.launch import Resources
from simulations.options import parse_set, run_overrides
from simulations.predict import list_images
from simulations.resume import Launch, resumed
from simulations.separate import open_policy
from simulations.trained import read_trained

EXAMPLE = ROOT / "docs" / "examples" / "ward7"
MODEL, STRATEGY, READER = "ward7.nets:small", "ward7.strategies:Clipped", "ward7.readers:NUMPY"
STUDY = (EXAMPLE / "study.toml").read_text()
SMALL = parse_set([*TINY, "run.rounds=2", "model.adapt=none"])
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch, session_cache: Path, tmp_path: Path) -> None:
    """Let the example be importable, and no extension be allowed."""
    monkeypatch.syspath_prepend(EXAMPLE)
    monkeypatch.setenv(extensions.VARIABLE, "")
    monkeypatch.setenv("FEDSCAN_CACHE", str(session_cache))
    monkeypatch.setenv("FEDSCAN_RECORDS", str(tmp_path / "records"))


def hospital(folder: Path, people: int, seed: int) -> Path:
    """Write arrays whose lower half is bright with an effusion, and their table."""
    rng, rows = np.random.default_rng(seed), []
    folder.mkdir(parents=True)
    for person in range(people):
        array = rng.uniform(0, 0.4, (24, 24))
        array[12:] += 0.5 * (person % 2)
        np.save(folder / f"{person}.npy", array)
        rows.append((f"{person}.npy", f"p{person}", ("none", "effusion")[person % 2]))
    with (folder / "findings.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "patient", "finding"), *rows])
    return folder


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    above = tmp_path_factory.mktemp("arrays")
    for seed, name in enumerate(("north", "south")):
        hospital(above / name, 30, seed)
    return above


def trained(cohort: Path, folder: Path, config) -> Path:
    """Train as a federation does, without Flower."""
    sites = list_sites(cohort)
    train_in_place(
        {site: [site] for site in sites},
        sites,
        config,
        place=SiteContext("all", tuple(sorted(sites)), torch.device("cpu")),
        folder=folder / "all",
        records=(folder / "sites", Path("all")),
    )
    return folder / "all"


# Who may load what


@pytest.mark.parametrize(
    "values", [{"model.classifier": MODEL}, {"strategy.name": STRATEGY}, {"study": STUDY}]
)
def test_what_is_not_allowed_is_refused_before_it_is_imported(values) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "ward7"]:
        del sys.modules[name]
    with pytest.raises(ConfigError, match=r"no extension that may be loaded here.*allowed-ext"):
        read_run_config(SMALL | {"study": "skin-lesions"} | values)
    assert "ward7" not in sys.modules


def test_who_types_a_name_allows_it_and_nothing_else() -> None:
    run_overrides([f"strategy.name={STRATEGY}"], str(EXAMPLE / "study.toml"))
    assert extensions.allowed() == {STRATEGY, READER}


def test_a_sites_policy_decides_alone(tmp_path: Path) -> None:
    allow([MODEL, STRATEGY])
    policy = tmp_path / "policy.toml"
    policy.write_text(f'allowed-extensions = ["{STRATEGY}"]')
    values = SMALL | {"strategy.name": STRATEGY, "model.classifier": MODEL, "study": "skin-lesions"}
    config = read_run_config(values)
    assert set(extensions_of(config).values()) == {MODEL, STRATEGY}
    (objection,) = [one for one in SitePolicy.read(policy).objections(config) if "extension" in one]
    assert objection.startswith(f"model.classifier = {MODEL}")
    assert not SIMULATED.objections(config)
    allow_only(SitePolicy.read(policy).allowed_extensions)
    with pytest.raises(ConfigError, match=r"model\.classifier"):
        read_run_config(values)


@pytest.mark.parametrize("value", ['["os"]', '["ward7.nets"]', '"ward7.nets:small"', "[3]"])
def test_a_policys_list_holds_names_alone(value: str, tmp_path: Path) -> None:
    (tmp_path / "policy.toml").write_text(f"allowed-extensions = {value}")
    with pytest.raises(ConfigError, match="accepted is a list of names"):
        SitePolicy.read(tmp_path / "policy.toml")


def test_a_deployed_site_refuses_before_it_imports(tiny_cohort: Path, task_identity: None) -> None:
    from flwr.app import Context, RecordDict
    from test_clients_local import Site

    for name in [name for name in sys.modules if name.partition(".")[0] == "ward7"]:
        del sys.modules[name]
    allow([MODEL])  # whatever its environment says
    site = Site(run_config(SMALL), tiny_cohort)
    config = {**site.config.to_flower(), "model.classifier": MODEL}
    context = Context(7, 5, site.node, RecordDict(), config)
    failure = messages.failure_in(app(messages.request(messages.HELLO, 5), context))
    assert failure is not None and "allowed-extensions" in failure.error
    assert "ward7" not in sys.modules


def test_a_folder_of_results_does_not_load_what_it_names(cohort: Path, tmp_path: Path) -> None:
    allow([MODEL, READER])
    folder = trained(cohort, tmp_path, run_config(SMALL, study=STUDY, classifier=MODEL))
    allow_only([])
    with pytest.raises(ConfigError, match="FEDSCAN_EXTENSIONS names it"):
        read_trained(folder)
    allow([MODEL, READER])
    assert read_trained(folder).sites == ("north", "south")


def test_a_resumed_run_does_not_load_what_its_folder_names(tmp_path: Path) -> None:
    allow([MODEL])
    config = run_config(SMALL, study="skin-lesions", classifier=MODEL)
    folder = tmp_path / "7-run"
    folder.mkdir()
    Launch(config, Resources(2), {"north": tmp_path}, separate=True).write(folder)
    assert f'allowed-extensions = ["{MODEL}"]' in open_policy(config, ["north"])
    allow_only([])
    with pytest.raises(ConfigError, match="FEDSCAN_EXTENSIONS names it"):
        resumed(folder, {}, [], separate=True)
    assert "allowed-extensions = []" in open_policy(config, ["north"])
    resumed(folder, run_overrides([f"model.classifier={MODEL}"], None), [], separate=True)


def test_a_gate_that_explains_a_run_imports_what_its_policy_allows_alone(tmp_path: Path) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "ward7"]:
        del sys.modules[name]
    (tmp_path / "policy.toml").write_text("")
    words = ["--policy", str(tmp_path / "policy.toml"), "--site", "north", "--data-dir", "data"]
    words += ["--study", str(EXAMPLE / "study.toml"), "--set", f"model.classifier={MODEL}"]
    allow([MODEL, READER])  # whatever its environment says
    done = CliRunner().invoke(cli, ["gate", "explain", *words])
    assert isinstance(done.exception, ConfigError) and "allowed-ext" in str(done.exception)
    assert "ward7" not in sys.modules


def test_what_a_reader_lacks_for_a_check_is_told() -> None:
    allow([READER])
    assert reader_of(read_study(STUDY))
    with pytest.raises(ConfigError, match="header_identities, table_identities, read_picture"):
        reader_of(read_study(STUDY), checks=True)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ward7.nothing:small", "Install its package where this process runs"),
        ("ward7.nets:nothing", "has no 'nothing'"),
        ("ward7.nets:Small", "cannot be called with channels, classes and size"),
        ("builtins:dict", "returns no torch.nn.Module"),
    ],
)
def test_a_model_that_is_none_is_refused_in_words(name: str, words: str) -> None:
    allow([name])
    with pytest.raises(ConfigError, match=words):
        read_run_config(SMALL | {"study": "skin-lesions", "model.classifier": name})


def test_a_folder_to_predict_is_listed_as_its_reader_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    allow([READER])
    study, reader = read_study(STUDY), reader_of(read_study(STUDY))
    folder = hospital(tmp_path / "new", 4, 0)
    (folder / "findings.csv").write_text("path\n3.npy\n")
    assert [one.name for one in list_images(study, folder)] == ["3.npy"]
    (folder / "findings.csv").rename(folder / "notes.md")
    (folder / ".bidsignore").write_text("2.npy\n")
    assert [one.name for one in list_images(study, folder)] == ["0.npy", "1.npy", "3.npy"]
    monkeypatch.delattr(type(reader), "endings")
    assert "notes.md" in [one.name for one in list_images(study, folder)]
    own = study.model_copy(update={"images": study.images.model_copy(update={"table": ""})})
    listed = SimpleNamespace(files=("a/1.scan",))
    monkeypatch.setattr(type(reader), "read_table", lambda *_: listed)
    assert [one.name for one in list_images(own, folder)] == ["a/1.scan"]


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Write an extension of that source; return its name, which is allowed."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "broken_nets", raising=False)

    def write(source: str) -> str:
        (tmp_path / "broken_nets.py").write_text(source)
        importlib.invalidate_caches()
        allow([name := "broken_nets:small"])
        return name

    return write


@pytest.mark.parametrize(
    ("source", "cause"),
    [
        ("def small(:", r"SyntaxError: .*broken_nets\.py, line 1"),
        ("raise RuntimeError('no\\nlicence')", "RuntimeError: no licence"),
        ("raise SystemExit('too old')", "SystemExit: too old"),
        ("import sys; sys.exit()", r"\(SystemExit\)"),
        ("try:\n    1 / 0\nexcept ZeroDivisionError:\n    raise OSError('x')", "ZeroDivisionError"),
        ("raise KeyError('HOME') from ValueError('first')", "ValueError: first"),
        ("try:\n    1 / 0\nexcept ArithmeticError as e:\n    raise e from e", "ZeroDivisionError"),
    ],
)
def test_an_extension_that_fails_at_import_is_named_with_the_first_cause(
    broken: Callable[[str], str], source: str, cause: str
) -> None:
    name = broken(source)
    with pytest.raises(ConfigError, match=cause) as caught:
        extensions.load_extension(name, "model.classifier")
    assert str(caught.value).startswith(f"model.classifier = '{name}': it cannot be imported (")
    assert "\n" not in str(caught.value) and "(" not in caught.value.public


@pytest.mark.parametrize("what", ["MemoryError()", "KeyboardInterrupt()", "SystemExit(143)"])
def test_what_ends_the_process_is_no_fault_of_an_extension(
    broken: Callable[[str], str], what: str
) -> None:
    name = broken(f"raise {what}")
    with pytest.raises((MemoryError, KeyboardInterrupt, SystemExit)):
        extensions.load_extension(name, "model.classifier")


@pytest.mark.parametrize(
    ("key", "name", "words"),
    [
        ("strategy.name", MODEL, "no class of Strategy"),
        ("study", STUDY.replace(READER, MODEL), "it has no read_table, open_images, read_image"),
    ],
)
def test_an_extension_of_another_kind_is_refused(key: str, name: str, words: str) -> None:
    allow([MODEL])
    with pytest.raises(ConfigError, match=words):
        read_run_config(SMALL | {key: name})


# What each kind does


def test_model_reader_and_strategy_train_together(cohort: Path, tmp_path: Path) -> None:
    allow([MODEL, READER, STRATEGY])
    values = {"study": STUDY, "model.classifier": MODEL, "strategy.name": STRATEGY}
    steps = {"training.local-steps": 15, "run.rounds": 4, "training.learning-rate": 0.01}
    config = read_run_config(SMALL | values | steps | {"strategy.bound": 5.0})
    folder = trained(cohort, tmp_path, config)
    model = read_trained(folder).classifier()
    assert not model.training
    table = read_trained(folder).open("north", "test")
    with torch.no_grad():
        found = model(torch.from_numpy(table.take(np.arange(len(table))))).argmax(1).numpy()
    assert (found == table.labels).mean() > 0.8  # half would be chance


def test_the_same_seed_trains_the_same_weights_with_dropout(cohort: Path, tmp_path: Path) -> None:
    allow([MODEL, READER])
    config = run_config(SMALL, study=STUDY, classifier=MODEL)
    torch.manual_seed(1)
    one = trained(cohort, tmp_path / "one", config) / "model.safetensors"
    torch.manual_seed(2)
    other = trained(cohort, tmp_path / "other", config) / "model.safetensors"
    assert one.read_bytes() == other.read_bytes()


def test_what_travels_of_a_model_is_floats_alone(cohort: Path) -> None:
    allow([MODEL, READER])
    config, task = run_config(SMALL, study=STUDY, classifier=MODEL), load_task("classification")
    place = SiteContext("north", ("north",), torch.device("cpu"))
    model = task.build_model(config, place)
    shared = task.shared_state(model, config)
    assert all(tensor.dtype == torch.float32 for tensor in shared.values())
    assert "network.order" in model.state_dict() and "network.order" not in shared
    other = task.build_model(config.replace({"run.seed": 9}), place)
    task.load_shared(other, shared)
    for name, tensor in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor), name


def test_a_run_begins_with_the_weights_of_another_one(cohort: Path, tmp_path: Path) -> None:
    allow([MODEL, READER])
    config, task = run_config(SMALL, study=STUDY, classifier=MODEL), load_task("classification")
    folder = trained(cohort, tmp_path, config)
    later = config.replace({"model.warm-start": str(folder), "run.seed": 5})
    model = task.build_model(later, SiteContext("", ("north", "south"), torch.device("cpu")))
    task.warm_start(model, later)
    for name, tensor in read_trained(folder).classifier().state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


@pytest.mark.parametrize("least", [1, 1000])
def test_statistics_of_batch_normalization_leave_over_enough_people(
    cohort: Path, session_cache: Path, least: int
) -> None:
    allow([MODEL, READER])
    config, task = run_config(SMALL, study=STUDY, classifier=MODEL), load_task("classification")
    place = SiteContext("north", ("north",), torch.device("cpu"), Disclosure(least))
    model = task.build_model(config, place)
    before = task.parameters(model)
    statistics = task.statistics_of(config) & before.keys()
    assert len(statistics) == 4  # a mean and a variance of two layers
    data = task.open_split("north", cohort / "north", "train", config, session_cache)
    task.fit(model, data, config, place=place, round_number=1, private={})
    after = task.parameters(model)
    assert {n for n in statistics if torch.equal(before[n], after[n])} == (
        statistics if least > 1 else set()
    )
    assert not torch.equal(before["network.head.weight"], after["network.head.weight"])


PRIVATE = {"privacy.epsilon": 5.0, "privacy.delta": 1e-3, "training.augment": "none"}
CENTRAL = {"privacy.central-epsilon": 5.0, "run.evaluate-every": 0}


def private(options: dict[str, object], build: Callable[..., nn.Module], monkeypatch):
    """Read the config of a run with differential privacy whose network is built so."""
    name = "ward7.nets:own"
    allow([name, READER])
    monkeypatch.setattr(importlib.import_module("ward7.nets"), "own", build, raising=False)
    for cached in (outside._look, classifier_networks.network_statistics):
        cached.cache_clear()
    return read_run_config({**SMALL, "study": STUDY, "model.classifier": name, **options})


def flat(*, buffer: bool = False, persistent: bool = True) -> Callable[..., nn.Module]:
    """A linear network, perhaps with a buffer of numbers that it could change."""

    def build(*, channels: int, classes: int, size: int) -> nn.Module:
        network = nn.Sequential(nn.Flatten(), nn.Linear(channels * size * size, classes))
        if buffer:
            network.register_buffer("seen", torch.zeros(3), persistent=persistent)
        return network

    return build


@pytest.mark.parametrize("options", [PRIVATE, CENTRAL], ids=["people", "sites"])
def test_what_would_travel_beside_the_weights_is_refused_with_differential_privacy(
    options: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    nets = importlib.import_module("ward7.nets")
    private(options, flat(), monkeypatch)
    private(options, flat(buffer=True, persistent=False), monkeypatch)
    with pytest.raises(ConfigError, match="use GroupNorm"):
        private(options, nets.small, monkeypatch)
    with pytest.raises(ConfigError, match=r"buffer 'network\.seen' would travel"):
        private(options, flat(buffer=True), monkeypatch)


class Scaled(nn.Module):
    """A linear network of images from which weights named like a BatchNorm's buffers are taken."""

    def __init__(self, channels: int, classes: int, size: int) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(channels, 1, 1))
        self.variance = nn.Parameter(torch.ones(channels, 1, 1))
        self.head = nn.Linear(channels * size * size, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(((images - self.mean) * self.variance).flatten(1))


def test_noise_of_the_server_is_added_to_weights_whatever_they_are_called(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config, sites = private(CENTRAL, Scaled, monkeypatch), ("north", "south")
    task = load_task("classification")
    model = task.build_model(config, SiteContext("", sites, torch.device("cpu")))
    before = task.shared_state(model, config)
    update = Update(4, {}, {name: tensor + 1e-3 for name, tensor in before.items()})
    known = SimpleNamespace(
        names=sites,
        train=lambda *_: dict.fromkeys(sites, update),
        settle=lambda *_: None,
        record=lambda *_: None,
    )
    after, _ = aggregate_round(1, RunState(before, {}, {}), config, known)
    assert {"network.mean", "network.variance"} <= after.keys()
    assert not [name for name, tensor in before.items() if torch.equal(after[name], tensor)]


def test_statistics_of_batch_normalization_have_a_bound_of_their_own_in_a_secure_sum() -> None:
    allow([MODEL, READER])
    sites = ("north", "south", "west")
    values = {**SMALL, "study": STUDY, "model.classifier": MODEL, "privacy.secure-sums": True}
    config = read_run_config({**values, "strategy.weighting": "uniform"})
    layout = layout_of(config, "train", sites, len(sites))
    zero = {n.removeprefix("change/"): torch.zeros(s) for n, s in layout.shapes.items() if "/" in n}
    statistics = load_task("classification").statistics_of(config) & zero.keys()
    assert len(statistics) == 4
    moved = {n: tensor + (7.0 if n in statistics else 0.25) for n, tensor in zero.items()}
    vector = vector_of(layout, config, "train", Change(4, {}, moved, zero))
    found = update_of(vector, layout, config, zero).state
    assert all(float((found[n] - moved[n]).abs().max()) < 1e-5 for n in moved)
    with pytest.raises(SecureSumError, match="beyond the public bound"):
        far = {name: tensor + 7.0 for name, tensor in zero.items()}
        vector_of(layout, config, "train", Change(4, {}, far, zero))


def test_noise_for_the_head_alone_needs_a_head_that_the_server_knows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    private({"model.trains": "head"}, flat(), monkeypatch)
    with pytest.raises(ConfigError, match=r"model\.trains = 'head'"):
        private({**CENTRAL, "model.trains": "head"}, flat(), monkeypatch)


def test_a_clipped_mean_is_the_mean_where_no_step_is_longer_than_the_bound() -> None:
    allow([STRATEGY])
    strategy = load_strategy(STRATEGY)
    assert strategy.name == STRATEGY
    weights = {"w": torch.zeros(3)}
    updates = {
        site: SiteUpdate({"w": torch.full((3,), value)}, 4, votes)
        for site, value, votes in (("north", 0.1, 3.0), ("south", -0.2, 1.0))
    }

    def merged(bound: float) -> torch.Tensor:
        config = run_config(SMALL, options=f"bound={bound}")
        found, _ = strategy.aggregate(updates, weights, {}, config, participants=2, rate=1.0)
        return found["w"]

    votes = {site: one.votes for site, one in updates.items()}
    mean = weighted_mean({site: one.weights for site, one in updates.items()}, votes)["w"]
    torch.testing.assert_close(merged(10.0), mean)
    assert float(merged(0.01).norm()) <= 0.01
    with pytest.raises(ConfigError, match=r"strategy\.bound = .*above 0"):
        strategy.check(run_config(SMALL, options="bound=-1"))


def test_a_model_of_python_is_registered_by_its_name(tmp_path: Path) -> None:
    from ward7 import nets

    import fedscan

    assert fedscan.register_model(nets.small) == MODEL
    assert MODEL in extensions.allowed()
    with pytest.raises(fedscan.ConfigError, match="cannot import it"):
        fedscan.register_model(lambda **_: None)


def test_the_example_is_a_package_that_needs_only_what_is_public() -> None:
    code = "import sys, ward7.nets, ward7.strategies, ward7.readers; print(*sys.modules)"
    path = f"{ROOT}:{EXAMPLE}"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": path, "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "ward7.readers" in done.stdout.split()
    for file in EXAMPLE.rglob("*.py"):
        text = file.read_text()
        assert "import common" not in text and "from common" not in text


def test_the_page_shows_the_example_and_its_policy(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "extending.md").read_text()
    sources = "\n".join(file.read_text() for file in EXAMPLE.rglob("*.py"))
    blocks = re.findall(r"^```python\n(.*?)```", page, flags=re.M | re.S)
    assert len(blocks) == 3
    for block in blocks:
        assert block in sources
    (policy,) = re.findall(r"```toml\n(.*?)```", page, flags=re.S)
    (tmp_path / "policy.toml").write_text(textwrap.dedent(policy))
    assert SitePolicy.read(tmp_path / "policy.toml").allowed_extensions == (MODEL, STRATEGY, READER)
