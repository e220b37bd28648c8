"""The process in a box: what a hospital runs the app of one run in, task after task.

It starts before there is a task, and imports what takes seconds: PyTorch, Flower and what else the
app asks for. The app's own code comes with the run, so nothing of fedscan is imported here, and
this file stands alone: it is executed by its path, with Python's own library and what is installed
beside it. Around it is :mod:`clients.gateway.sandbox`.

Usage: ``box.py DESCRIPTOR``, of a socket that the gate has the other end of. From there comes a
line of JSON with what to start from, and then a line for each task, with its token. Back go single
bytes: ``L`` with the descriptor of a socket that listens on this network's loopback interface, by
which the gate answers the app; ``R`` when all is imported; ``D`` when a task is done, well or not.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import importlib.util
import json
import os
import resource
import select
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

LISTENER, READY, DONE = b"L", b"R", b"D"
WAITING = 128  # connections that the gate has not accepted yet
SIGNALS = {
    signal.SIGINT: signal.SIG_IGN,  # which Flower raises when a task's time has run out
    signal.SIGTERM: signal.SIG_DFL,
    signal.SIGQUIT: signal.SIG_DFL,
}

Serve = Callable[[str, str], None]  # with the address of the gate and a task's token


def main() -> None:
    """Serve tasks until the gate closes its end."""
    control = socket.socket(fileno=int(sys.argv[1]))
    control.set_inheritable(False)
    lines = control.makefile("r", encoding="utf-8")
    start = json.loads(lines.readline())
    os.environ.clear()
    os.environ.update(start["environment"])
    for name, most in start["limits"].items():
        _limit(getattr(resource, name), most)
    for folder in start["folders"]:
        Path(folder).mkdir(parents=True, exist_ok=True)
    os.chdir(start["folders"][0])
    address = _listen(control)
    for name in start["imports"]:
        if select.select([control], [], [], 0)[0]:  # a task waits, which may need none of the rest
            break
        with contextlib.suppress(ImportError):  # then the app's own import tells
            importlib.import_module(name)
    serve = _driver(*start["driver"]) if start["driver"] else _flower()
    gc.collect()
    gc.freeze()  # what is there now stays, and need not be looked at with every collection
    _forget_signals()
    control.sendall(READY)
    for line in lines:
        _serve(serve, address, json.loads(line))
        control.sendall(DONE)


def _limit(kind: int, most: int) -> None:
    _, hard = resource.getrlimit(kind)
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(kind, (most, most))


def _listen(control: socket.socket) -> str:
    """Hand the gate a socket that this network's own processes can connect to."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(WAITING)
        socket.send_fds(control, [LISTENER], [listener.fileno()])
        return f"127.0.0.1:{listener.getsockname()[1]}"


def _serve(serve: Serve, address: str, token: str) -> None:
    try:
        serve(address, token)
    except SystemExit:  # so Flower ends a task
        pass
    except BaseException:  # whatever an app raises, the next task is served
        traceback.print_exc()
    finally:
        _forget_signals()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()


def _forget_signals() -> None:
    for number, handler in SIGNALS.items():
        signal.signal(number, handler)


def _driver(file: str, name: str) -> Serve:
    spec = importlib.util.spec_from_file_location("driver", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name)


def _flower() -> Serve:
    """Return what runs a task as ``flwr-clientapp`` does, but leaves the process alive."""
    from flwr.supercore.exit import exit_handler, signal_handler
    from flwr.supernode.runtime import run_clientapp as task

    def leave(code: int, *_: object, **__: object) -> None:
        # Flower's own starts a thread that ends the whole process seconds later.
        for first in (True, False):
            exit_handler.trigger_exit_handlers(run_before_force_exit=first)
        raise SystemExit(code)

    task.flwr_exit = signal_handler.flwr_exit = leave

    def serve(address: str, token: str) -> None:
        task.run_clientapp(runtime_api_address=address, token=token, insecure=True)

    return serve


if __name__ == "__main__":
    main()
