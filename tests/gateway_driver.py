"""What the tests have a box do in place of Flower's task; it runs inside, on its own.

A token is JSON, a function's name and its arguments; what that returns goes to the listener.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path


def serve(address: str, token: str) -> None:
    name, *arguments = json.loads(token)
    answer = globals()[name](*arguments)
    host, port = address.split(":")
    with socket.create_connection((host, int(port)), timeout=30) as gate:
        gate.sendall(json.dumps(answer).encode())


def attempt(action, *arguments):
    """Return what an action returns, or the name of the error that the system answers with."""
    try:
        return action(*arguments)
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))


def read(path):
    return attempt(Path(path).read_text)


def write(path):
    return attempt(Path(path).write_text, "changed")


def delete(path):
    return attempt(Path(path).unlink)


def listing(path):
    return attempt(os.listdir, path)


def connect(family, address):
    def connects():
        with socket.socket(getattr(socket, family), socket.SOCK_STREAM) as probe:
            probe.settimeout(3)
            probe.connect(tuple(address) if isinstance(address, list) else "\0" + address)

    return attempt(connects)


def call(name, *arguments):
    """Return the error of a function of the C library, empty where it does as asked."""
    libc = ctypes.CDLL(None, use_errno=True)
    failed = getattr(libc, name)(*arguments) == -1
    return errno.errorcode[ctypes.get_errno()] if failed else ""


def open_socket(family):
    return attempt(lambda: socket.socket(family, socket.SOCK_DGRAM).close())


def processes():
    """Return the command line of every process in sight."""
    folders = [folder for folder in Path("/proc").iterdir() if folder.name.isdecimal()]
    return [folder.joinpath("cmdline").read_text().split("\0") for folder in folders]


def environments():
    folders = [folder for folder in Path("/proc").iterdir() if folder.name.isdecimal()]
    return [dict(os.environ), *(read(folder / "environ") for folder in folders)]


def capabilities():
    lines = Path("/proc/self/status").read_text().splitlines()
    return [line.split()[1] for line in lines if line.startswith("Cap")]


def modules():
    return [
        name
        for name in sys.modules
        if name.split(".")[0] in ("common", "clients", "server", "simulations")
    ]


def nothing():
    return None


def raises():
    raise RuntimeError("an app's own")


def say(text, times):
    for _ in range(times):
        print(text)


def leave_behind():
    command = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    subprocess.Popen([sys.executable, "-c", command, "left-behind"], start_new_session=True)


def take_memory(megabytes):
    blocks = []
    for _ in range(megabytes):
        blocks.append(bytearray(os.urandom(1 << 20)))
        time.sleep(0.001)
    time.sleep(30)


def take_shared_memory(megabytes):
    import mmap

    shared = mmap.mmap(-1, megabytes << 20)
    for k in range(0, len(shared), 4096):
        shared[k] = 1
    time.sleep(30)


def take_time():
    while True:
        pass


def take_disk(folder, megabytes):
    for k in range(megabytes):
        Path(folder, str(k)).write_bytes(bytes(1 << 20))
    time.sleep(30)


def take_threads(number):
    import threading

    for _ in range(number):
        threading.Thread(target=time.sleep, args=(30,), daemon=True).start()
    time.sleep(30)
