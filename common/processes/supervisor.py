"""Run a command so that nothing it starts outlives the one who asked for it, or can be reached.

``flwr run`` starts a SuperLink that detaches itself, which starts the simulation, which starts
Ray's daemons. A supervisor stands above them all: on Linux their orphans become its children, and
when its standard input closes, because the launcher is done or was killed, it ends every one.

Where Linux grants it (:mod:`common.processes.namespaces`), the network is the group's own, so that
no other user of the machine can connect to what listens there. The supervisor then is process 1 of
a process namespace: should it be killed, the kernel kills all the others. The process that entered
the namespaces only waits for it; killed, it makes the supervisor end.

Usage: ``python -m common.processes.supervisor [--remove DIR] [--until-ended NAME] [--share-network]
[--share-all] [--pass-descriptor N] COMMAND ARG …``. It prints ``isolated`` or ``shared``, for the
network, which ``--share-network`` leaves to the command as it is, and ``--share-all`` with the view
of the machine's other processes. When the command has ended, and every process of
the group whose command line has NAME in it, it prints ``exit CODE`` and waits for the end of its
input. At last it removes DIR, which a killed launcher cannot.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import threading

import psutil

from common.processes import namespaces

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # <linux/prctl.h>
GRACE_SECONDS = 5.0
WATCH_SECONDS = 0.25
ISOLATED, SHARED = "isolated", "shared"


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _descendants() -> set[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return set(psutil.Process().children(recursive=True))
    return set()


def _command_line(process: psutil.Process) -> list[str]:
    with contextlib.suppress(psutil.Error):
        return process.cmdline()
    return []


def _is_group(process: psutil.Process) -> bool:
    return _command_line(process)[1:3] == ["-m", "common.processes.supervisor"]


def end_all(known: set[psutil.Process]) -> None:
    """Terminate every process in ``known`` and every descendant, and kill what does not go.

    The supervisor of another group among them, such as that of a benchmark's cell, is the last to
    be killed: it has a folder to remove when all its processes are gone.
    """
    for attempt, spared in (("terminate", False), ("kill", True), ("kill", False)):
        # Anew each time: a process may have started others before it got the signal.
        processes = {p for p in known | _descendants() if p.is_running()}
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                if not (spared and _is_group(process)):
                    getattr(process, attempt)()
        _, alive = psutil.wait_procs(list(processes), timeout=GRACE_SECONDS)
        if not alive and not _descendants():
            return


def _supervise(
    command: list[str],
    passed: list[int],
    until_ended: str | None,
    asked_to_end: threading.Event,
) -> None:
    """Run a command until it is asked to end; then end it and all that it started."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    known: set[psutil.Process] = set()

    def wait_for_end_of_input() -> None:
        while os.read(0, 4096):
            pass
        asked_to_end.set()

    threading.Thread(target=wait_for_end_of_input, daemon=True).start()
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
        pass_fds=passed,
        start_new_session=True,
    )
    for number in passed:  # whoever holds the other end is to see when the command closes its own
        os.close(number)
    reported = False
    try:
        while not asked_to_end.wait(WATCH_SECONDS):
            if sys.platform != "linux":  # there orphans are adopted: nobody gets lost
                known |= _descendants()
            _reap(process)
            if reported or process.poll() is None:
                continue
            if until_ended and any(
                until_ended in " ".join(_command_line(p)) for p in known | _descendants()
            ):
                continue
            reported = True
            _report(f"exit {process.returncode}")
    finally:
        end_all(known)


def _reap(command: subprocess.Popen[bytes]) -> None:
    """Let adopted orphans that have ended go, but leave the command to :mod:`subprocess`."""
    if sys.platform != "linux":  # there is none to adopt
        return
    with contextlib.suppress(ChildProcessError):
        while child := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            if child.si_pid == command.pid:
                command.poll()
            else:
                os.waitpid(child.si_pid, 0)


def _report(line: str) -> None:
    with contextlib.suppress(BrokenPipeError):
        os.write(1, f"{line}\n".encode())  # for whoever started this process to read


def main() -> None:
    """Run a command in a group until standard input closes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--remove", metavar="DIR")
    parser.add_argument("--until-ended", metavar="NAME")
    parser.add_argument("--share-network", action="store_true")
    parser.add_argument("--share-all", action="store_true")
    parser.add_argument("--pass-descriptor", metavar="N", type=int, action="append", default=[])
    parser.add_argument("command", nargs=argparse.REMAINDER)
    arguments = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the launcher decides; it closes our input
    asked_to_end = threading.Event()
    # Before anything is forked: process 1 never sees a signal that it has no handler for.
    signal.signal(signal.SIGTERM, lambda *_: asked_to_end.set())
    network = not arguments.share_network
    flags = 0 if arguments.share_all else namespaces.possible(network=network)
    supervisor = namespaces.enter(flags) if flags else 0
    try:
        if supervisor:
            for number in arguments.pass_descriptor:
                os.close(number)
            _wait_for(supervisor, asked_to_end)
        else:
            if flags & namespaces.CLONE_NEWPID:
                # A parent that has died before cannot be seen from here; but then our input has
                # ended too, or the launcher sees the death of its child and ends it.
                _prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
            _report(ISOLATED if flags & namespaces.CLONE_NEWNET else SHARED)
            passed = arguments.pass_descriptor
            _supervise(arguments.command, passed, arguments.until_ended, asked_to_end)
    finally:
        if arguments.remove:
            shutil.rmtree(arguments.remove, ignore_errors=True)


def _wait_for(supervisor: int, asked_to_end: threading.Event) -> None:
    """Hand on what asks to end, until the supervisor has ended and the kernel all its processes."""

    def hand_on(*_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(supervisor, signal.SIGTERM)

    signal.signal(signal.SIGTERM, hand_on)
    if asked_to_end.is_set():  # since the fork
        hand_on()
    os.waitpid(supervisor, 0)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


if __name__ == "__main__":
    main()
