"""What runs in a box reaches nothing but what it was given, and ends with it."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from processes import ROOT

from clients.gateway import box as box_module
from clients.gateway import output, sandbox, seccomp, watch
from clients.gateway.sandbox import Box, Limits, View, start_box
from common.errors import ConfigError, FedscanError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux's namespaces")
DRIVER = (ROOT / "tests" / "gateway_driver.py", "serve")
SANDBOXES = ("namespaces", "bubblewrap")
MIB = 1 << 20
SECRET = "Ada Lovelace"


def needs(kind: str) -> None:
    if kind in SANDBOXES and not sandbox._granted(kind):
        pytest.skip(f"this system grants no {kind}")


def ask(box: Box, *words: object) -> object:
    """Have the driver do something in the box, and return its answer."""
    box.run(json.dumps(words))
    box.listener.settimeout(30)
    app, _ = box.listener.accept()
    with app, app.makefile("rb") as answer:
        found = json.loads(answer.read())
    assert box.finished(30)
    return found


def family() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


def gone(processes: set[psutil.Process], seconds: float = 20.0) -> bool:
    return not psutil.wait_procs(list(processes), timeout=seconds)[1]


@contextlib.contextmanager
def box_of(
    kind: str, view: View | None = None, limits: Limits | None = None, log: Callable = print
) -> Iterator[Box]:
    needs(kind)
    with start_box(view or View(), limits or Limits(), kind, log, driver=DRIVER, imports=()) as box:
        yield box


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hospital's folders: scans, reached by a link too, records, and others' files."""
    folder = tmp_path_factory.mktemp("site")
    for name in ("scans", "records", "others"):
        (folder / name).mkdir()
        (folder / name / "file").write_text(SECRET)
    (folder / "link").symlink_to("scans")
    return folder


@pytest.fixture(scope="module", params=SANDBOXES)
def box(request: pytest.FixtureRequest, site: Path) -> Iterator[Box]:
    view = View((site / "link",), (site / "records",), {"FEDSCAN_POLICY": "here"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOSPITAL_PASSWORD", SECRET)
        with box_of(request.param, view) as started:
            yield started


def test_the_sites_data_can_be_read_under_each_of_their_names(box: Box, site: Path) -> None:
    assert ask(box, "read", str(site / "link" / "file")) == SECRET
    assert ask(box, "read", str(site / "scans" / "file")) == SECRET


def test_no_other_file_can_be_read(box: Box, site: Path) -> None:
    assert ask(box, "listing", str(site)) == ask(box, "listing", str(site / "others" / ".."))[
        :0
    ] or (set(ask(box, "listing", str(site))) == {"link", "scans", "records"})
    for path in (site / "others" / "file", ROOT / "pyproject.toml", "/etc/shadow", "/etc/hostname"):
        assert ask(box, "read", str(path)) == "ENOENT"


def test_no_other_file_can_be_written(box: Box, site: Path) -> None:
    ask(box, "write", str(site / "others" / "file"))
    ask(box, "write", str(site / "new"))
    ask(box, "write", "/tmp/fedscan-box-was-here")
    assert (site / "others" / "file").read_text() == SECRET
    assert not (site / "new").exists()
    assert not Path("/tmp/fedscan-box-was-here").exists()


def test_the_sites_data_cannot_be_changed(box: Box, site: Path) -> None:
    file = site / "scans" / "file"
    assert ask(box, "write", str(file)) == "EROFS"
    assert ask(box, "delete", str(file)) == "EROFS"
    assert ask(box, "write", str(site / "scans" / "new")) == "EROFS"


def test_the_environment_of_python_cannot_be_changed(box: Box) -> None:
    import numpy

    assert ask(box, "write", numpy.__file__) == "EROFS"
    assert ask(box, "write", "/usr/bin/new") == "EROFS"


def test_records_can_be_written(box: Box, site: Path) -> None:
    ask(box, "write", str(site / "records" / "new"))
    assert (site / "records" / "new").read_text() == "changed"


def test_no_process_of_the_machine_is_seen(box: Box) -> None:
    seen = ask(box, "processes")
    assert 0 < len(seen) <= 3
    assert not any(str(os.getpid()) in words or sys.argv == words[1:-1] for words in seen)
    assert all("box.py" in " ".join(words) or "enter" in " ".join(words) for words in seen)


def test_nothing_answers_but_the_listener(box: Box) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as unix:
        name = f"fedscan-test-{os.getpid()}"
        unix.bind("\0" + name)
        unix.listen()
        assert ask(box, "connect", "AF_INET", list(server.getsockname())) == "ECONNREFUSED"
        assert ask(box, "connect", "AF_UNIX", name) == "ECONNREFUSED"
    for address in ("192.0.2.1", "10.0.0.1"):
        assert ask(box, "connect", "AF_INET", [address, 80]) == "ENETUNREACH"


@pytest.mark.parametrize("family", [16, 17, 40], ids=["netlink", "packet", "vsock"])
def test_there_are_no_sockets_of_other_families(box: Box, family: int) -> None:
    assert ask(box, "open_socket", family) == "EPERM"


@pytest.mark.parametrize(
    "words",
    [
        ("ptrace", 0, 0, 0, 0),
        ("unshare", 0x10000000),
        ("unshare", 0x40000000),
        ("chroot", "/tmp"),
        ("umount2", "/proc", 2),
        ("syscall", 250, 0, 0, 0),
    ],
)
def test_calls_that_lead_out_are_shut(box: Box, words: tuple) -> None:
    if words[0] == "syscall" and os.uname().machine != "x86_64":
        pytest.skip("a number of another architecture")
    assert ask(box, "call", *words) == "EPERM"


def test_the_kernels_settings_cannot_be_written(box: Box) -> None:
    before = Path("/proc/sys/kernel/core_pattern").read_text()
    assert ask(box, "write", "/proc/sys/kernel/core_pattern") == "EROFS"
    assert Path("/proc/sys/kernel/core_pattern").read_text() == before


def test_there_are_no_capabilities(box: Box) -> None:
    assert {int(found, 16) for found in ask(box, "capabilities")} == {0}


def test_the_environment_of_the_host_does_not_show(box: Box) -> None:
    own, *others = ask(box, "environments")
    assert own["FEDSCAN_POLICY"] == "here"
    assert "HOSPITAL_PASSWORD" not in own
    assert not any(SECRET in text for text in others)


def test_no_code_of_fedscan_is_there_before_the_bundles(box: Box) -> None:
    assert ask(box, "modules") == []


def test_the_next_task_is_served_after_one_that_failed(box: Box) -> None:
    box.run(json.dumps(["raises"]))
    assert box.finished(30)
    assert ask(box, "nothing") is None
    assert box.ended == ""


def test_a_token_is_on_no_command_line_and_in_no_environment() -> None:
    token = json.dumps(["take_time"])
    with box_of("namespaces") as box:
        box.run(token)
        assert not box.finished(0.3)
        for process in family():
            assert token not in process.cmdline()
            assert token not in process.environ().values()


@pytest.mark.parametrize("kind", [*SANDBOXES, "none"])
def test_what_a_task_leaves_behind_ends_with_the_box(kind: str) -> None:
    before = family()
    with box_of(kind) as box:
        ask(box, "leave_behind")
        end = time.monotonic() + 20
        left = False
        while not left and time.monotonic() < end:  # it finds another parent at this moment
            started = family() - before
            left = any("left-behind" in process.cmdline() for process in started)
        assert left
        box.close()
        assert gone(started, 0)
    assert box.ended == "close"


HOLDER = """
import json, sys, time
from pathlib import Path
from clients.gateway.sandbox import Limits, View, start_box
with start_box(View(), Limits(), sys.argv[1], print, driver=(Path(sys.argv[2]), "serve"),
               imports=()) as box:
    box.run(json.dumps(["leave_behind"]))
    box.listener.accept()
    print("started", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("kind", [*SANDBOXES, "none"])
def test_nothing_is_left_of_a_killed_gate(kind: str) -> None:
    needs(kind)
    command = [sys.executable, "-c", HOLDER, kind, str(DRIVER[0])]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"started\n"
        started = set(psutil.Process(holder.pid).children(recursive=True))
        assert any("left-behind" in process.cmdline() for process in started)
        holder.kill()
    assert gone(started)


@pytest.mark.parametrize(
    ("why", "limits", "words"),
    [
        ("memory", Limits(memory_bytes=300 * MIB), ["take_memory", 400]),
        ("memory", Limits(memory_bytes=300 * MIB), ["take_shared_memory", 400]),
        ("cpu", Limits(cpu_seconds=1.0), ["take_time"]),
        ("disk", Limits(disk_bytes=20 * MIB), ["take_disk", "FOLDER", 40]),
        ("processes", Limits(processes=60), ["take_threads", 59]),
    ],
    ids=["memory", "shared memory", "cpu", "disk", "processes"],
)
def test_a_box_that_takes_too_much_is_ended_and_the_gate_is_told_which(
    why: str,
    limits: Limits,
    words: list,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watch, "LEAST_PAUSE", 0.5)
    lines: list[str] = []
    before = family()
    with box_of("namespaces", View(writable=(tmp_path,)), limits, lines.append) as box:
        started = family() - before
        box.run(json.dumps([str(tmp_path) if word == "FOLDER" else word for word in words]))
        assert box.finished(20)
        assert box.ended == why
        box.close()
        assert gone(started, 0)
    assert any(f"({why})" in line for line in lines)


def test_what_a_task_writes_is_cleaned_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "MOST_OUTPUT", 20_000)
    lines: list[str] = []
    with box_of("namespaces", log=lines.append) as box:
        ask(box, "say", "\x1b[2Jwiped \x1b[91mred\x1b[0m", 1)
        ask(box, "say", "x" * 5000, 50)
        deadline = time.monotonic() + 30  # until all of it has been read
        while not any("left out" in line for line in lines) and time.monotonic() < deadline:
            time.sleep(0.05)
        ask(box, "say", "the next task", 1)
    assert lines[0] == "\ufffd[2Jwiped red"
    assert max(map(len, lines)) <= output.LONGEST_LINE
    assert sum(map(len, lines)) < 21_000
    assert any("left out" in line for line in lines)
    assert lines[-1] == "the next task"


@pytest.mark.parametrize("path", ["/", "/proc/self", "/etc", "relative", "/not/there"])
def test_a_path_that_a_box_cannot_have_is_refused(path: str) -> None:
    with (
        pytest.raises(ConfigError, match=path),
        start_box(View((Path(path),)), Limits(), "none", print),
    ):
        pass


def test_a_box_that_does_not_come_up_says_why(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("raise SystemExit('the driver is broken')")
    with start_box(
        View(), Limits(), "none", print, driver=(tmp_path / "broken.py", "serve"), imports=()
    ) as box:
        assert not box.ready(30)
        assert box.ended == "exit"


def test_a_task_of_flowers_ends_without_ending_the_box(monkeypatch: pytest.MonkeyPatch) -> None:
    from flwr.supercore.exit import signal_handler
    from flwr.supernode.runtime import run_clientapp as task

    told = []
    for module in (task, signal_handler):
        monkeypatch.setattr(module, "flwr_exit", module.flwr_exit)  # to be put back
    monkeypatch.setattr(
        task, "run_clientapp", lambda **given: (told.append(given), task.flwr_exit(0))
    )
    serve = box_module._flower()
    threads = threading.active_count()
    for token in ("first", "second"):
        with pytest.raises(SystemExit):
            serve("127.0.0.1:1", token)
    assert [given["token"] for given in told] == ["first", "second"]
    assert threading.active_count() == threads  # Flower's own would end the process after seconds


def answer(machine: str, number: int, argument: int = 0, audit: int | None = None) -> int:
    """Run the filter on a system call, as the kernel does."""
    if audit is None:
        audit = seccomp.ARCHITECTURES[machine][1]
    data = struct.pack("=IIQ6Q", number, audit, 0, argument, 0, 0, 0, 0, 0)
    steps = list(struct.iter_unpack("=HBBI", seccomp.program(machine)))
    value = at = 0
    while True:
        code, if_so, if_not, operand = steps[at]
        at += 1
        if code == seccomp.RETURN:
            return operand
        if code == seccomp.LOAD:
            (value,) = struct.unpack_from("=I", data, operand)
            continue
        tests = {
            seccomp.EQUAL: value == operand,
            seccomp.AT_LEAST: value >= operand,
            seccomp.ANY_BIT: bool(value & operand),
        }
        at += if_so if tests[code] else if_not


@pytest.mark.parametrize("machine", seccomp.ARCHITECTURES)
def test_the_filter_tells_calls_and_their_arguments_apart(machine: str) -> None:
    column = seccomp.ARCHITECTURES[machine][0]
    clone, opens, pair = (n[column] for n in (seccomp.CLONE, seccomp.SOCKET, seccomp.SOCKETPAIR))
    denied, missing = seccomp.ERROR | 1, seccomp.ERROR | 38
    for table, expected in ((seccomp.NOT_PERMITTED, denied), (seccomp.NOT_THERE, missing)):
        for numbers in table.values():
            if numbers[column] is not None:
                assert answer(machine, numbers[column]) == expected
    assert answer(machine, clone, 0x3D0F00) == seccomp.ALLOW  # a thread
    for bit in (17, 25, 26, 27, 28, 29, 30):
        assert answer(machine, clone, 1 << bit) == denied
    for number in (opens, pair):
        assert [f for f in range(50) if answer(machine, number, f) == seccomp.ALLOW] == [1, 2, 10]
    assert answer(machine, 63) == seccomp.ALLOW  # uname, or read


def test_the_filter_kills_calls_of_another_architecture() -> None:
    assert answer("x86_64", 0, audit=0x40000003) == seccomp.KILL  # i386
    assert answer("x86_64", seccomp.X32 | 1) == seccomp.ERROR | 1


def test_another_processor_gets_no_sandbox() -> None:
    with pytest.raises(FedscanError, match="riscv64"):
        seccomp.program("riscv64")


def test_a_folder_that_cannot_be_measured_counts_as_too_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watching = watch.Watch(Limits(), os.getpid(), [tmp_path])
    watching.new_task()
    monkeypatch.setattr(watch, "MOST_FILES", 3)
    for k in range(4):
        (tmp_path / str(k)).touch()
    watching._folders._next = 0.0
    assert watching.passed() == ("disk", "the folders cannot be measured: more than 3 files")
