"""What leaves a site when something goes wrong: everything if it is simulated, else safe words."""

from __future__ import annotations

from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict

from clients import resources
from clients.app import app
from clients.guard import guard
from common import messages
from common.config.run_config import RunConfig
from common.errors import ConfigError, DataContractError
from common.messages import Failure
from common.sites import site_name

pytestmark = pytest.mark.usefixtures("in_simulation", "task_identity")

SECRETS = ("secret", "sub-007")
SIMULATED = {"partition-id": 1, "num-partitions": 3}


@pytest.fixture
def deployed(tmp_path) -> dict[str, str]:
    folder = tmp_path / "secret" / "scans"
    folder.mkdir(parents=True)
    return {"site": "north", "data-dir": str(folder)}


def context(node_config: dict, run_config: dict | None = None) -> Context:
    return Context(1, 5, node_config, RecordDict(), run_config or {})


def asked(kind: str = messages.TRAIN, round_number: int = 3) -> Message:
    return messages.request(kind, 5, round_number=round_number)


def raising(error: BaseException):
    def call_next(message: Message, context: Context) -> Message:
        raise error

    return call_next


def failure_of(
    error: BaseException, node_config: dict, run_config: dict | None = None, **sent
) -> Failure:
    reply = guard(asked(**sent), context(node_config, run_config), raising(error))
    assert list(reply.content) == [messages.FAILURE]  # and nothing besides
    return messages.failure_in(reply)


def assert_keeps_secrets(failure: Failure) -> None:
    for told in vars(failure).values():
        for secret in SECRETS:
            assert secret not in told


# Nothing wrong


@pytest.mark.parametrize("simulated", [True, False])
def test_answer_passes_as_it_is(deployed, simulated):
    answer = messages.update_reply(asked(), 3, {"loss": 1.0}, {})
    node_config = SIMULATED if simulated else deployed
    assert guard(asked(), context(node_config), lambda *_: answer) is answer


# Errors at a deployed site

LEAKY = [
    ValueError("sub-007 /secret/path"),
    KeyError("sub-007"),
    FileNotFoundError(2, "No such file", "/secret/sub-007.nii.gz"),
    RuntimeError("sub-007", "/secret"),
]


@pytest.mark.parametrize("error", LEAKY, ids=lambda error: type(error).__name__)
def test_deployed_site_tells_type_and_lines_of_code_only(deployed, error):
    failure = failure_of(error, deployed)
    assert_keeps_secrets(failure)
    assert failure.error == f"{type(error).__name__} (its message stays in the site's log)"
    assert failure.traceback.splitlines()[-1].startswith("call_next (test_clients_guard.py:")
    assert "guard (guard.py:" in failure.traceback


def test_chain_of_errors_is_not_told_either(deployed):
    def call_next(message, context):
        try:
            raise ValueError("sub-007 /secret/path")
        except ValueError as error:
            raise RuntimeError("reading /secret") from error

    reply = guard(asked(), context(deployed), call_next)
    assert_keeps_secrets(messages.failure_in(reply))


def test_frames_hold_no_folder(deployed):
    failure = failure_of(ValueError(), deployed)
    assert "/" not in failure.traceback
    assert "\\" not in failure.traceback


def test_error_of_the_data_sends_its_public_words(deployed):
    error = DataContractError(
        "north", "sex is neither F nor M", where="/secret/participants.tsv", got="sub-007"
    )
    failure = failure_of(error, deployed)
    assert failure.error == error.public == "site 'north': sex is neither F nor M"
    assert_keeps_secrets(failure)


def test_error_of_the_configuration_sends_its_public_words(deployed):
    error = ConfigError("/secret is not a folder", public="data-dir is not a folder")
    assert failure_of(error, deployed).error == "data-dir is not a folder"


def test_whole_error_stays_in_the_log_of_the_site(deployed, caplog):
    failure_of(ValueError("sub-007 /secret/path"), deployed)
    assert "sub-007 /secret/path" in caplog.text
    assert "north failed in train, round 3" in caplog.text


# Errors at a simulated site


@pytest.mark.parametrize("error", LEAKY, ids=lambda error: type(error).__name__)
def test_simulated_site_tells_everything(error):
    failure = failure_of(error, SIMULATED)
    assert failure.error == str(error)
    assert failure.traceback.startswith("Traceback (most recent call last)")
    assert str(error) in failure.traceback
    assert str(Path(__file__)) in failure.traceback


def test_error_of_the_configuration_is_told_without_lines_of_code(caplog):
    failure = failure_of(ConfigError("there are 2 SuperNodes"), SIMULATED)
    assert (failure.error, failure.traceback) == ("there are 2 SuperNodes", "")
    assert "failed in train, round 3: there are 2 SuperNodes" in caplog.text
    assert "Traceback" not in caplog.text


def test_error_without_words_is_told_by_its_type():
    assert failure_of(ZeroDivisionError(), SIMULATED).error == "ZeroDivisionError"


def test_site_with_data_of_its_own_is_deployed_whatever_else_its_node_says(deployed):
    """Flower's guides start SuperNodes with a partition-id; that makes no hospital a simulation."""
    failure = failure_of(ValueError("sub-007 /secret/path"), SIMULATED | deployed)
    assert_keeps_secrets(failure)
    assert failure.site == "north"


# Who asks


@pytest.mark.parametrize("theirs", [{"source-hash": "0" * 64}, {"source-hash": ""}, {}, None])
@pytest.mark.parametrize("simulated", [True, False])
def test_other_sources_are_refused_before_the_site_works(deployed, theirs, simulated):
    def call_next(message, context):
        raise AssertionError("the site's code ran")

    content = RecordDict({} if theirs is None else {messages.CONFIG: ConfigRecord(theirs)})
    message = Message(content, dst_node_id=5, message_type=messages.TRAIN)
    reply = guard(message, context(SIMULATED if simulated else deployed), call_next)
    failure = messages.failure_in(reply)
    assert "the server runs other fedscan sources" in failure.error
    assert_keeps_secrets(failure)


@pytest.mark.parametrize("kind", [messages.HELLO, messages.TRAIN, messages.EVALUATE])
def test_every_door_of_the_client_is_guarded(deployed, kind):
    """An empty folder is no data set: whatever is asked, the answer is a failure in safe words."""
    failure = messages.failure_in(app(asked(kind), context(deployed)))
    assert failure.site == "north"
    assert_keeps_secrets(failure)
    message = Message(RecordDict(), dst_node_id=5, message_type=kind)
    assert "other fedscan sources" in messages.failure_in(app(message, context(deployed))).error


# Site and phase


@pytest.mark.parametrize(
    ("kind", "round_number", "phase"),
    [
        (messages.HELLO, 0, "query.hello"),
        (messages.TRAIN, 3, "train, round 3"),
        (messages.EVALUATE, 12, "evaluate, round 12"),
    ],
)
def test_failure_says_when(deployed, kind, round_number, phase):
    assert failure_of(ValueError(), deployed, kind=kind, round_number=round_number).phase == phase


def test_failure_says_where(deployed, tmp_path):
    assert failure_of(ValueError(), deployed).site == "north"
    assert failure_of(ValueError(), SIMULATED).site == "south"  # the second of three phantoms
    for name in ("a", "b", "c"):
        (tmp_path / "cohort" / name).mkdir(parents=True)
    run_config = {"data.cohort-dir": str(tmp_path / "cohort")}
    assert failure_of(ValueError(), SIMULATED, run_config).site == "b"


BROKEN = {"training.learning-rate": -1.0}


def test_deployed_site_keeps_its_name_when_the_run_config_is_broken(deployed):
    assert failure_of(ValueError(), deployed, BROKEN).site == "north"
    failure = messages.failure_in(app(asked(messages.HELLO), context(deployed, BROKEN)))
    assert failure.site == "north"
    assert "training.learning-rate = -1.0" in failure.error


def test_simulated_site_keeps_its_number_when_the_run_config_is_broken():
    failure = messages.failure_in(app(asked(messages.HELLO), context(SIMULATED, BROKEN)))
    assert failure.site == "1"
    assert "training.learning-rate = -1.0" in failure.error


def test_cohort_of_another_size_is_told(tmp_path):
    (tmp_path / "only").mkdir()
    run_config = {"data.cohort-dir": str(tmp_path)}
    failure = messages.failure_in(app(asked(messages.HELLO), context(SIMULATED, run_config)))
    assert failure.site == "1"
    assert "num-supernodes=1" in failure.error


@pytest.mark.parametrize(
    "node_config",
    [
        {},
        {"partition-id": "first"},
        {"partition-id": 1},
        {"partition-id": 9, "num-partitions": 3},
        {"site": "/secret", "data-dir": "north"},
        {"site": "north", "data-dir": "secret"},
        {"site": "north", "data-dir": "/" + "secret" * 1000},
        {"site": 7, "data-dir": 7},
        {"data-dir": "/secret"},
    ],
    ids=[
        "nothing",
        "number in words",
        "no count",
        "number beyond the count",
        "swapped",
        "relative folder",
        "path longer than the system takes",
        "numbers",
        "no name",
    ],
)
def test_broken_node_config_is_a_failure_and_never_an_exception(node_config):
    """Flower would send an exception's text, and a server would not learn whose it is."""
    failure = messages.failure_in(app(asked(messages.HELLO), context(node_config)))
    assert failure.site
    assert failure.error
    assert_keeps_secrets(failure)


def test_folder_that_may_not_be_looked_at_is_not_told(deployed, monkeypatch):
    """Asking about a folder below one without permission raises, with the path in its words."""

    def denied(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_dir", denied)
    with pytest.raises(PermissionError, match="secret"):
        site_name(deployed, RunConfig.from_flower({}))
    failure = messages.failure_in(app(asked(messages.HELLO), context(deployed)))
    assert failure.site == "north"
    assert_keeps_secrets(failure)


def test_number_without_the_simulation_engine_is_no_site_and_tells_nothing(monkeypatch, tmp_path):
    """Else a hospital that started its SuperNode as Flower's guides do lets the server choose."""
    for module in ("guard", "local"):
        monkeypatch.setattr(f"clients.{module}.declared", resources.declared)
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    run_config = {"data.cohort-dir": str(tmp_path)}
    failure = messages.failure_in(
        app(asked(messages.HELLO), context({"partition-id": 0, "num-partitions": 2}, run_config))
    )
    assert "does not say which site it is" in failure.error
    assert str(tmp_path) not in failure.error + failure.traceback
    assert failure.site == "unnamed"
