"""Stands in for ``systemctl`` on a machine without systemd: services that run and start again.

Of a unit it honours ``ExecStart``, ``Environment``, ``LoadCredential``, ``StateDirectory``,
``RuntimeDirectory``, ``Restart=always``, ``RestartSec`` and ``RestartPreventExitStatus``; the rest,
users and hardening, is systemd's own to show.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

UNITS = Path("/etc/systemd/system")
STATE = Path("/run/systemctl")
NGINX = "[Service]\nExecStart=/usr/sbin/nginx -g 'daemon off;'\n"
PASSED_ON = ("FEDSCAN_TEST", "PYTHONPATH", "OMP_NUM_THREADS")  # of the test, not of the machine


def read(unit: str) -> dict[str, list[str]]:
    file = UNITS / f"{unit}.service"
    text = NGINX if unit == "nginx" and not file.exists() else file.read_text()
    values: dict[str, list[str]] = {}
    for line in text.splitlines():
        if found := re.fullmatch(r"(\w+)=(.*)", line):
            values.setdefault(found[1], []).append(found[2])
    return values


def one(values: dict[str, list[str]], key: str, default: str) -> str:
    return values.get(key, [default])[-1]


def supervise(unit: str) -> None:
    """Keep a service running until it is stopped."""
    values = read(unit)
    environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    environment |= dict(pair.split("=", 1) for pair in values.get("Environment", []))
    credentials = Path("/run/credentials") / unit
    environment["CREDENTIALS_DIRECTORY"] = str(credentials)
    words = shlex.split(one(values, "ExecStart", ""))
    words = [word.replace("${CREDENTIALS_DIRECTORY}", str(credentials)) for word in words]
    prevented = one(values, "RestartPreventExitStatus", "").split()
    running: subprocess.Popen[bytes] | None = None
    stopping = False

    def stop(*_: object) -> None:
        nonlocal stopping
        stopping = True
        if running:
            running.terminate()

    def reload(*_: object) -> None:
        if running:
            running.send_signal(signal.SIGHUP)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGHUP, reload)
    (STATE / unit).write_text(str(os.getpid()))
    with Path(f"/var/log/{unit}.journal").open("ab") as log:
        while not stopping:
            shutil.rmtree(credentials, ignore_errors=True)
            credentials.mkdir(parents=True, mode=0o700)
            for name, source in (pair.split(":") for pair in values.get("LoadCredential", [])):
                shutil.copyfile(source, credentials / name)
            for key, above in (("StateDirectory", "/var/lib"), ("RuntimeDirectory", "/run")):
                for name in one(values, key, "").split():
                    if key == "RuntimeDirectory":
                        shutil.rmtree(Path(above, name), ignore_errors=True)
                    Path(above, name).mkdir(mode=0o700, exist_ok=True, parents=True)
            running = subprocess.Popen(
                words,
                cwd="/",
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            code = str(running.wait())
            if one(values, "Restart", "no") != "always" or code in prevented:
                break
            until = time.monotonic() + float(one(values, "RestartSec", "0.1"))
            while not stopping and time.monotonic() < until:
                time.sleep(0.1)
    (STATE / unit).unlink()


def number(unit: str) -> int | None:
    try:
        return int((STATE / unit).read_text())
    except (FileNotFoundError, ValueError):
        return None


def start(unit: str) -> None:
    if number(unit):
        return
    read(unit)
    subprocess.Popen(
        [sys.executable, "-I", __file__, "--supervise", unit],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    while not number(unit):
        time.sleep(0.02)


def stop(unit: str) -> None:
    if manager := number(unit):
        os.kill(manager, signal.SIGTERM)
        while number(unit):
            time.sleep(0.05)


def main() -> None:
    STATE.mkdir(exist_ok=True)
    verb, *units = [word for word in sys.argv[1:] if word != "--now"]
    if verb == "--supervise":
        supervise(units[0])
        return
    if verb == "daemon-reload":
        return
    for unit in units:
        if verb in ("stop", "disable", "restart"):
            stop(unit)
        if verb in ("start", "enable", "restart"):
            start(unit)
        if verb == "reload":
            os.kill(number(unit), signal.SIGHUP)
        if verb == "is-active" and not number(unit):
            sys.exit(3)


if __name__ == "__main__":
    main()
