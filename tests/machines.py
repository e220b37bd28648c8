"""Machines of a test: each with a network, an /etc, a /var and a /data of its own.

Commands are run on a machine as its administrator types them. ``sudo`` and ``systemctl`` stand in
for those of a machine that has them: see ``systemctl.py``. All processes are this machine's.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
from processes import MARK, ROOT, SCRIPTS, environment

NEEDED = ("ip", "nginx", "pivot_root", "useradd")
HOME = "/run/admin"
OWN = {"/": {"etc", "run", "var", "data", "opt"}, "/var": {"lib", "log"}}
OWN_STATE = {"nginx"}  # below /var/lib
SUDO = """#!/bin/sh
if [ "$1" = -u ]; then shift 2; fi
exec "$@"
"""
# Writes down, once each, whom a machine sends a packet of TCP or UDP to.
WATCH = """
import ipaddress, socket
seen, sniffer = set(), socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3))
while True:
    packet, (link, kind, direction, *_) = sniffer.recvfrom(65535)
    if link == "lo" or direction != socket.PACKET_OUTGOING:
        continue
    if kind == 0x0800:
        protocol, to, rest = packet[9], packet[16:20], packet[4 * (packet[0] & 15) :]
    elif kind == 0x86DD:
        protocol, to, rest = packet[6], packet[24:40], packet[40:]
    else:
        continue
    if protocol not in (6, 17):
        continue
    line = f"{ipaddress.ip_address(to)} {protocol} {int.from_bytes(rest[2:4], 'big')}"
    if line not in seen:
        seen.add(line)
        print(line, flush=True)
"""
ENTER = """set -e
root=$1; shift
mount --bind "$root" "$root"
cd "$root"
while read -r from to; do mount --rbind "$from" "$root/$to"; done < binds
pivot_root . .
umount -l .
cd {home}
exec "$@"
"""


def missing() -> str:
    """Say why no machines can be made here; nothing where they can."""
    if not sys.platform.startswith("linux") or os.getuid() != 0:
        return "needs root on Linux"
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    if absent := [name for name in NEEDED if shutil.which(name, path=path) is None]:
        return f"needs {', '.join(absent)}"
    name = f"fedscan-{os.getpid()}-probe"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False)
    tried = subprocess.run(
        ["ip", "-n", name, "link", "add", "br0", "type", "bridge"], capture_output=True, check=False
    )
    subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
    return "" if made.returncode == tried.returncode == 0 else "needs network namespaces"


class Machine:
    """One machine.

    Parameters
    ----------
    folder : Path
        For its files; what is in it is the machine's root folder.
    network : str
        Name of its network namespace.
    address : str
    """

    def __init__(self, folder: Path, network: str, address: str, cache: Path) -> None:
        self.root, self.network, self.address = folder, network, address
        self._cache = cache
        folder.mkdir(mode=0o755)
        binds = [
            *self._passed_on("/", OWN["/"]),
            *self._passed_on("/var", OWN["/var"]),
            *self._passed_on("/var/lib", OWN_STATE),
            *self._passed_on("/opt", {"fedscan"}),
        ]
        (folder / "binds").write_text("".join(f"{one} {one[1:]}\n" for one in binds))
        subprocess.run(["cp", "-a", "/etc/.", folder / "etc"], check=True)
        for made in ("data", "run/admin", "run/bin", "var/lib/nginx", "var/log/nginx"):
            (folder / made).mkdir(parents=True, exist_ok=True)
        (folder / "opt" / "fedscan").symlink_to(sys.prefix)
        systemctl = Path(__file__).with_name("systemctl.py")
        self._command("sudo", SUDO)
        self._command("systemctl", f'#!/bin/sh\nexec "{sys.executable}" -I "{systemctl}" "$@"\n')

    def _passed_on(self, above: str, own: set[str]) -> Iterator[str]:
        """Make what a folder of this machine holds visible, but for what is the machine's own."""
        inside = self.root / above[1:]
        inside.mkdir(exist_ok=True, parents=True)
        for entry in Path(above).iterdir():
            place = inside / entry.name
            if entry.name in own or " " in entry.name:
                continue
            if entry.is_symlink():
                place.symlink_to(entry.readlink())
            elif entry.is_dir():
                place.mkdir()
                yield str(entry)
        if above != "/opt":
            for name in own:
                (inside / name).mkdir(exist_ok=True)

    def _command(self, name: str, text: str) -> None:
        file = self.root / "run" / "bin" / name
        file.write_text(text)
        file.chmod(0o755)

    def path(self, inside: str) -> Path:
        """Return where a file of the machine lies."""
        return self.root / inside.lstrip("/")

    def hosts(self, names: dict[str, str]) -> None:
        """Let the machine know others by name."""
        lines = ["127.0.0.1 localhost", *(f"{address} {name}" for name, address in names.items())]
        (self.root / "etc" / "hosts").write_text("\n".join(lines) + "\n")

    def words(self, *command: str) -> list[str]:
        """Return the command line by which a command is run there."""
        enter = ["sh", "-c", ENTER.format(home=HOME), "enter", str(self.root)]
        return ["ip", "netns", "exec", self.network, *enter, *command]

    def environment(self, **extra: str) -> dict[str, str]:
        """Return what commands find around them."""
        own = environment(self._cache, HOME=HOME, TMPDIR=HOME, **extra)
        for name in ("FEDSCAN_CACHE", "FEDSCAN_RECORDS", "FLWR_HOME"):
            own.pop(name, None)
        own["PATH"] = f"/run/bin:{SCRIPTS}:/usr/sbin:/usr/bin:/sbin:/bin"
        own["PYTHONPATH"] = os.environ.get("PYTHONPATH", str(ROOT))
        return own

    def run(
        self, commands: str, cwd: str = HOME, check: bool = True, timeout: float = 400
    ) -> subprocess.CompletedProcess[str]:
        """Run commands of a shell to their end."""
        done = subprocess.run(
            self.words("bash", "-euc", f"cd {cwd}\n{commands}"),
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if check and done.returncode:
            raise AssertionError(f"{commands}\n{done.stdout}\n{done.stderr}")
        return done

    def start(self, commands: str, log: str, cwd: str = HOME) -> subprocess.Popen[bytes]:
        """Start commands of a shell, which write to a log."""
        with self.path(log).open("wb") as file:
            return subprocess.Popen(
                self.words("bash", "-euc", f"cd {cwd}\n{commands}"),
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def watch(self) -> None:
        """Begin to write down whom the machine sends anything to."""
        self.path(f"{HOME}/watch.py").write_text(WATCH)
        self.start("python watch.py", f"{HOME}/contacted")

    def contacted(self) -> set[str]:
        """Return whom it has sent anything to, as ``ADDRESS PROTOCOL PORT``."""
        return set(self.path(f"{HOME}/contacted").read_text().splitlines())

    def log(self, unit: str) -> str:
        """Return what a service has written."""
        return self.path(f"/var/log/{unit}.journal").read_text(errors="replace")

    def processes(self) -> list[psutil.Process]:
        """List what runs on the machine."""
        told = subprocess.run(
            ["ip", "netns", "pids", self.network], capture_output=True, text=True, check=False
        )
        found = []
        for number in map(int, told.stdout.split()):
            with contextlib.suppress(psutil.NoSuchProcess):
                found.append(psutil.Process(number))
        return found

    def lose_power(self, unit: str) -> None:
        """Kill all that a service has started, in one moment; its manager starts it again."""
        of_unit = [one for one in self.processes() if not _is(one, "systemctl.py")]
        for signal_ in (signal.SIGSTOP, signal.SIGKILL):
            for one in of_unit:
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.send_signal(signal_)

    def listening(self) -> set[str]:
        """Return the addresses that are listened on there, as ``ADDRESS:PORT``."""
        told = self.run("cat /proc/net/tcp /proc/net/tcp6").stdout
        return {
            line.split()[1]
            for line in told.splitlines()
            if len(line.split()) > 3 and line.split()[3] == "0A"
        }


def _is(process: psutil.Process, word: str) -> bool:
    with contextlib.suppress(psutil.Error):
        return any(word in part for part in process.cmdline())
    return False


@contextlib.contextmanager
def network(names: dict[str, str], cache: Path) -> Iterator[dict[str, Machine]]:
    """Make machines that reach each other.

    Parameters
    ----------
    names : dict of str to str
        Addresses by the machines' names.
    cache : Path

    Yields
    ------
    dict of str to Machine
        At the end everything that runs on them is killed, and they are removed.
    """

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    switch = f"fedscan-{os.getpid()}-switch"
    folder = Path(tempfile.mkdtemp(prefix="fedscan-machines-"))
    folder.chmod(0o755)
    machines: dict[str, Machine] = {}
    networks = [switch, *(f"fedscan-{os.getpid()}-{number}" for number in range(len(names)))]
    try:
        ip("netns", "add", switch)
        ip("-n", switch, "link", "add", "br0", "type", "bridge")
        ip("-n", switch, "link", "set", "br0", "up")
        for number, (name, address) in enumerate(names.items()):
            own = networks[number + 1]
            ip("netns", "add", own)
            machines[name] = Machine(folder / name, own, address, cache)
            machines[name].hosts(names)
            pair = ("link", "add", f"p{number}", "type", "veth", "peer", "name", "eth0", "netns")
            ip("-n", switch, *pair, own)
            ip("-n", switch, "link", "set", f"p{number}", "master", "br0", "up")
            ip("-n", own, "address", "add", f"{address}/24", "dev", "eth0")
            for link in ("lo", "eth0"):
                ip("-n", own, "link", "set", link, "up")
            if number:  # what is meant for the world leaves the machine as well
                ip("-n", own, "route", "add", "default", "via", next(iter(names.values())))
        yield machines
    finally:
        for machine in machines.values():
            deadline = time.monotonic() + 20
            while (left := machine.processes()) and time.monotonic() < deadline:
                for one in left:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        one.kill()
                time.sleep(0.1)
        for name in networks:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
        shutil.rmtree(folder, ignore_errors=True)


__all__ = ["MARK", "Machine", "missing", "network"]
