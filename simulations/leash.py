"""Run a command so that nothing it started outlives the one who asked for it.

``flwr run`` starts a SuperLink that detaches itself, which starts the simulation, which starts
Ray's daemons. This little process stands above them all: on Linux their orphans become its
children, and when its standard input closes, because the launcher is done or was killed, it ends
every one.

Usage: ``python -m simulations.leash [--remove DIR] COMMAND ARG …``. It prints ``exit CODE`` when
the command has ended and then waits for the end of its input, so that questions can still be put to
the SuperLink. At last it removes DIR, which a killed launcher cannot.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import threading

import psutil

PR_SET_CHILD_SUBREAPER = 36  # <linux/prctl.h>
GRACE_SECONDS = 5.0
WATCH_SECONDS = 0.25


def _adopt_orphans() -> None:
    """Ask Linux to hand us descendants whose parent has died; elsewhere watching must do."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _descendants() -> set[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return set(psutil.Process().children(recursive=True))
    return set()


def _is_leash(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.cmdline()[1:3] == ["-m", "simulations.leash"]
    return False


def end_all(known: set[psutil.Process]) -> None:
    """Terminate every process in ``known`` and every descendant, and kill what does not go.

    A leash among them, such as that of a benchmark's cell, is the last to be killed: it has a
    folder to remove when all that it holds is gone.
    """
    for attempt, spared in (("terminate", False), ("kill", True), ("kill", False)):
        # Anew each time: a process may have started others before it got the signal.
        processes = {p for p in known | _descendants() if p.is_running()}
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                if not (spared and _is_leash(process)):
                    getattr(process, attempt)()
        _, alive = psutil.wait_procs(list(processes), timeout=GRACE_SECONDS)
        if not alive and not _descendants():
            return


def main() -> None:
    """Hold a command on the leash until standard input closes."""
    _adopt_orphans()
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the launcher decides; it closes our input
    arguments = sys.argv[1:]
    remove = None
    if arguments[0] == "--remove":
        remove, arguments = arguments[1], arguments[2:]
    known: set[psutil.Process] = set()
    ended = threading.Event()

    def wait_for_end_of_input() -> None:
        while os.read(0, 4096):
            pass
        ended.set()

    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    threading.Thread(target=wait_for_end_of_input, daemon=True).start()
    command = subprocess.Popen(
        arguments, stdin=subprocess.DEVNULL, stdout=sys.stderr, start_new_session=True
    )
    reported = False
    try:
        while not ended.wait(WATCH_SECONDS):
            if sys.platform != "linux":  # there orphans are adopted: nobody gets lost
                known |= _descendants()
            if not reported and command.poll() is not None:
                reported = True
                with contextlib.suppress(BrokenPipeError):
                    print(f"exit {command.returncode}", flush=True)
    finally:
        end_all(known)
        if remove:
            shutil.rmtree(remove, ignore_errors=True)


if __name__ == "__main__":
    main()
