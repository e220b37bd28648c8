"""A box for the app of a run: a sandboxed process that has imported what is slow, and waits.

A run's code is the researcher's, not the hospital's. In its box it finds the Python environment,
what :class:`View` names of the hospital's folders, a loopback interface with the gate behind it,
and nothing else: no other file, process or address of the machine. What it takes is bounded, and
all that it started ends with it. A box serves the tasks of one run, one after the other.

Two ways lead there: namespaces made here (:mod:`clients.gateway.enter`), or Bubblewrap. Where the
system grants neither, a site can say that it does without; the app then has this user's rights.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from clients.gateway import seccomp
from clients.gateway.box import DONE, LISTENER, READY
from clients.gateway.output import Output
from clients.gateway.view import BOX, Mount, View, devices, layout, make_etc
from clients.gateway.watch import Limits, Watch
from common.errors import ConfigError, FedscanError
from common.processes.environment import OFFLINE, neutral_home, python_path, scripts
from common.processes.group import ProcessGroup, process_group

BOX_FILE = BOX / "box.py"
NAMESPACES, BUBBLEWRAP, NONE = "namespaces", "bubblewrap", "none"
START_SECONDS = 60.0  # until the box's process has come up, on a busy machine
TRIAL_SECONDS = 30.0
WATCH_SECONDS = 1.0
MOST_MEMORY_FILES = 4  # of the memory, what may lie in its file system: a fourth
INODES = 200_000
# What fedscan's tasks import and takes long, the most needed first; what a task does without costs
# memory alone.
IMPORTS = (
    "numpy",
    "torch",
    "flwr.supernode.runtime.run_clientapp",
    "flwr.clientapp",
    "torch._dynamo",  # by the first optimizer
    "pydantic",
    "safetensors.torch",
    "nibabel",
    "scipy.ndimage",
    "sklearn.metrics",
    "scipy.stats",
    "monai.networks.nets",
)


class Box:
    """A process that runs tasks; see :func:`start_box`.

    Attributes
    ----------
    listener : socket
        Listening on the box's own loopback interface: what connects to it is the app.
    """

    def __init__(
        self,
        group: ProcessGroup,
        control: socket.socket,
        listener: socket.socket,
        watch: Watch,
        output: Output,
        close: Callable[[], None],
    ) -> None:
        self.listener = listener
        self._control, self._watch, self._output, self._group = control, watch, output, group
        self._close, self._closing = close, threading.Lock()
        self._why = ""
        self._changed = threading.Condition()
        self._is_ready = self._is_done = False
        for work in (self._hear, self._look):
            threading.Thread(target=work, daemon=True).start()

    @property
    def ended(self) -> str:
        """Why the box has ended: memory, cpu, disk, processes, exit or close; else empty."""
        return self._why

    def ready(self, timeout: float) -> bool:
        """Wait until everything is imported; a task may be handed over before."""
        return self._wait(lambda: self._is_ready, timeout) and not self._why

    def run(self, token: str) -> None:
        """Hand over a task, when the one before is done.

        Raises
        ------
        FedscanError
            If the box has ended.
        """
        self._output.new_task()
        self._watch.new_task()
        with self._changed:
            self._is_done = False
        try:
            self._control.sendall(json.dumps(token).encode() + b"\n")
        except OSError as error:
            raise FedscanError(f"the box has ended: {self._why or 'exit'}") from error

    def finished(self, timeout: float) -> bool:
        """Wait; say whether the task is done, or the box has ended (:attr:`ended` says why)."""
        return self._wait(lambda: self._is_done, timeout)

    def close(self) -> None:
        """End the process and all that it started, and wait until they are gone."""
        self._end("close")
        with self._closing:
            pass

    def _wait(self, what: Callable[[], bool], timeout: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: what() or bool(self._why), timeout)

    def _end(self, why: str, measured: str = "") -> None:
        with self._closing:
            with self._changed:
                if self._why:
                    return
                self._why = why
                self._changed.notify_all()
            if measured:
                self._output.tell(f"ended, as it takes too much ({why}): {measured}")
            self._close()

    def _hear(self) -> None:
        """Note what the process says; the app can say it too, to its own harm alone."""
        while True:
            try:
                said = self._control.recv(1024)
            except OSError:
                said = b""
            if not said:
                break
            with self._changed:
                self._is_ready |= READY in said
                self._is_done |= DONE in said
                self._changed.notify_all()
        self._end("exit")

    def _look(self) -> None:
        while not self._wait(lambda: False, WATCH_SECONDS):
            if self._group.ended(0):
                self._end("exit")
            elif (passed := self._watch.passed())[0]:
                self._end(*passed)


def kind() -> str:
    """Return which sandbox this system grants, tried in a process of its own; empty for none."""
    if sys.platform != "linux":
        return ""
    return next((kind for kind in (NAMESPACES, BUBBLEWRAP) if _granted(kind)), "")


@functools.cache
def _granted(kind: str) -> bool:
    with neutral_home() as home:
        try:
            command = _command(home, kind, [sys.executable, "-I", "-c", ""], View(), Limits(), None)
            done = subprocess.run(
                command,
                cwd=home,
                env=_launcher_environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=TRIAL_SECONDS,
                check=False,
            )
        except (OSError, FedscanError, subprocess.TimeoutExpired):
            return False
        return done.returncode == 0


@contextlib.contextmanager
def start_box(
    view: View,
    limits: Limits,
    kind: str,
    log: Callable[[str], None],
    *,
    driver: tuple[Path, str] | None = None,
    imports: tuple[str, ...] = IMPORTS,
) -> Iterator[Box]:
    """Start a box; on leaving, it and all that it started is gone.

    Parameters
    ----------
    view : View
    limits : Limits
    kind : str
        ``namespaces`` or ``bubblewrap``, as :func:`kind` says, or ``none`` for no sandbox: then
        also every local user can connect to the listener.
    log : callable
        Is given the lines that the box writes, by a thread of its own.
    driver : (Path, str), optional
        File and function to call for each task in place of Flower's: for tests.
    imports : tuple of str
        Modules to import before the first task.

    Raises
    ------
    ConfigError
        For a path that cannot be shown.
    FedscanError
        If the box does not come up.
    """
    view.check()
    with contextlib.ExitStack() as stack:
        home = stack.enter_context(neutral_home())
        reading, writing = os.pipe()
        sink = stack.enter_context(open(writing, "wb", buffering=0))  # noqa: PTH123
        output = Output(reading, log)
        control, theirs = (stack.enter_context(end) for end in socket.socketpair())
        file = BOX_FILE if kind != NONE else Path(__file__).with_name("box.py")
        command = [sys.executable, "-I", "-B", "-u", str(file), str(theirs.fileno())]
        if kind != NONE:
            command = _command(home, kind, command, view, limits, driver)
        group = stack.enter_context(
            process_group(
                command,
                cwd=home,
                environment=_launcher_environment(),
                share_network=True,
                stderr=writing,
                pass_descriptor=theirs.fileno(),
            )
        )
        theirs.close()
        sink.close()
        try:
            watch = Watch(limits, group.pid, view.writable, view.held)
        except OSError as error:
            raise ConfigError(
                f"{error.filename}: this user cannot read it: {error.strerror}"
            ) from error
        start = _start(home, kind, view, limits, driver, imports)
        control.sendall(json.dumps(start).encode() + b"\n")
        listener = stack.enter_context(_listener(control, output))
        running = Box(group, control, listener, watch, output, stack.pop_all().close)
        try:
            yield running
        finally:
            running.close()
            output.wait(START_SECONDS)


def _command(
    home: Path, kind: str, command: list[str], view: View, limits: Limits, driver: tuple | None
) -> list[str]:
    """Write what the sandbox is to be; return the command that enters it."""
    own = [*make_etc(home / "etc"), Mount(Path(__file__).with_name("box.py"), BOX_FILE)]
    shown, links = layout(View((*view.readable, *(driver[:1] if driver else ())), view.writable))
    plan = {
        "kind": kind,
        "root": str(home / "root"),
        "tmpfs": min(limits.disk_bytes, limits.memory_bytes // MOST_MEMORY_FILES),
        "inodes": INODES,
        "folders": [str(BOX)],
        "mounts": [(str(m.source), str(m.target), m.writable) for m in (*own, *shown)],
        "links": links,
        "devices": devices(),
        "seccomp": seccomp.program().hex(),
        "command": command,
        "environment": _first_environment(),
    }
    file = home / "plan.json"
    file.write_text(json.dumps(plan))
    return [sys.executable, "-m", "clients.gateway.enter", str(file)]


def _start(
    home: Path,
    kind: str,
    view: View,
    limits: Limits,
    driver: tuple[Path, str] | None,
    imports: tuple[str, ...],
) -> dict[str, Any]:
    """Return what the box starts from, for :mod:`clients.gateway.box`."""
    base = BOX if kind != NONE else home
    folders = {"HOME": base / "home", "TMPDIR": base / "tmp", "FLWR_HOME": base / "flwr"}
    most = {
        # Of a process, to stop what would outrun the watch. Not the address space, of which
        # PyTorch and CUDA reserve far more than they use.
        "RLIMIT_DATA": 2 * limits.memory_bytes,
        "RLIMIT_FSIZE": limits.disk_bytes,
        "RLIMIT_CORE": 0,
    }
    if kind != NONE and _kernel() >= (5, 14):  # before, a user's processes elsewhere count too
        most["RLIMIT_NPROC"] = limits.processes
    return {
        "environment": {
            **_first_environment(),
            **OFFLINE,
            **{name: str(folder) for name, folder in folders.items()},
            "USER": "box",
            **view.environment,
        },
        "folders": list(map(str, folders.values())),
        "limits": most,
        "imports": imports,
        "driver": [str(driver[0]), driver[1]] if driver else None,
    }


def _first_environment() -> Mapping[str, str]:
    own = {"PATH": f"{scripts()}:/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"}
    return own | {k: v for k, v in os.environ.items() if k == "LD_LIBRARY_PATH"}


def _launcher_environment() -> dict[str, str]:
    """Return the variables of the processes around the box, which import fedscan."""
    return {**_first_environment(), "PYTHONPATH": python_path()}


def _kernel() -> tuple[int, ...]:
    return tuple(int(n) for n in os.uname().release.split("-")[0].split(".")[:2] if n.isdecimal())


def _listener(control: socket.socket, output: Output) -> socket.socket:
    """Take the socket on which the box's own code, before any of an app's, listens.

    Raises
    ------
    FedscanError
        If it does not come.
    """
    control.settimeout(START_SECONDS)
    try:
        said, descriptors, _, _ = socket.recv_fds(control, len(LISTENER), 1)
    except OSError:
        said, descriptors = b"", []
    control.settimeout(None)
    if said != LISTENER or len(descriptors) != 1:
        output.wait(0.5)
        raise FedscanError(f"the box's process does not start: {output.last or 'it says nothing'}")
    return socket.socket(fileno=descriptors[0])
