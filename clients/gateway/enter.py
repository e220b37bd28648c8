"""Enter the sandbox and start a command there: ``python -m clients.gateway.enter PLAN``.

The plan is what :mod:`clients.gateway.sandbox` has written as JSON. The process that reads it stays
outside and waits; should it be killed, the kernel kills all that is inside. Either the namespaces
are made here, by system calls alone, or ``bwrap`` of Bubblewrap makes the same ones.

Inside there is a file system of its own, in memory and bounded; in it lie, read-only unless the
plan says otherwise, the folders that the plan names. The network is a loopback interface, and the
processes of the machine cannot be seen. Capabilities are given up for good, and the system calls
of :mod:`clients.gateway.seccomp` are shut.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn

from common.processes import namespaces
from common.processes.namespaces import call

# <linux/sched.h>, <linux/mount.h>, <sys/mount.h>, <linux/prctl.h>, <linux/capability.h>
CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC = 1 << 25, 1 << 26, 1 << 27
ALL = CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC | namespaces.WITH_NETWORK[1]
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND, MS_REC = 1, 2, 4, 8, 32, 4096, 16384
MNT_DETACH = 2
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_CAPBSET_DROP = 1, 4, 22, 24
PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL = 38, 47, 4
SECCOMP_MODE_FILTER, CAPABILITY_VERSION, CAPABILITIES = 2, 0x20080522, 64
DEVICES = ("null", "zero", "full", "random", "urandom")
LINKS = {"fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2"}


def main() -> None:
    """Enter the sandbox that the plan describes; end with what its command ended with."""
    plan = json.loads(Path(sys.argv[1]).read_text())
    if plan["kind"] == "bubblewrap":
        _bubblewrap(plan)
    _namespaces(plan)


def _namespaces(plan: dict[str, Any]) -> NoReturn:
    try:
        child = namespaces.enter(ALL)
    except OSError:
        if os.getuid() != 0:
            raise
        child = namespaces.enter(ALL & ~namespaces.CLONE_NEWUSER)  # which root may do without
    if child:
        os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) & 0xFF)
    call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    _make_root(plan, Path(plan["root"]))
    give_up_capabilities()
    _shut_calls(bytes.fromhex(plan["seccomp"]))
    # The first process of a process namespace hears no signals and inherits orphans: not the app's.
    if not (command := os.fork()):
        os.execve(plan["command"][0], plan["command"], plan["environment"])
    call("prctl", PR_SET_DUMPABLE, 0, 0, 0, 0)
    while True:
        ended, status = os.wait()
        if ended == command:
            os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


def _make_root(plan: dict[str, Any], root: Path) -> None:
    """Make a file system of the plan's folders, and make it the only one."""
    memory = f"size={plan['tmpfs']},nr_inodes={plan['inodes']},mode=755".encode()
    root.mkdir(exist_ok=True)
    call("mount", b"tmpfs", bytes(root), b"tmpfs", MS_NOSUID | MS_NODEV, memory)
    for folder in ("proc", "dev/shm", "tmp", *(p.strip("/") for p in plan["folders"])):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "tmp").chmod(0o1777)
    for source, target, writable in plan["mounts"]:
        _bind(source, root / target.strip("/"))
        _restrict(root / target.strip("/"), 0 if writable else MS_RDONLY)
    for link, text in plan["links"].items():
        place = root / link.strip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(text)
    for device in [f"/dev/{name}" for name in DEVICES] + plan["devices"]:
        _bind(device, root / device.strip("/"))
    for name, text in LINKS.items():
        (root / "dev" / name).symlink_to(text)
    call("mount", b"tmpfs", bytes(root / "dev/shm"), b"tmpfs", MS_NOSUID | MS_NODEV, memory)
    call("mount", b"proc", bytes(root / "proc"), b"proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, None)
    _restrict(root / "proc", MS_RDONLY)  # the kernel's settings: root's own numbers could write
    os.chdir(root)
    call("pivot_root", b".", b".")  # the old root now lies above the new one
    call("umount2", b".", MNT_DETACH)
    os.chdir("/")


def _bind(source: str, target: Path) -> None:
    if Path(source).is_dir():
        target.mkdir(parents=True, exist_ok=True)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
    call("mount", source.encode(), bytes(target), None, MS_BIND | MS_REC, None)


def _restrict(target: Path, flags: int) -> None:
    """Take rights from a mount and those within it, which each have to keep what they lack."""
    names = {"ro": MS_RDONLY, "nosuid": MS_NOSUID, "nodev": MS_NODEV, "noexec": MS_NOEXEC}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split(" ")
        # Spaces and the like are written as \040.
        place = Path(fields[4].encode().decode("unicode_escape").encode("latin-1").decode())
        if place != target and target not in place.parents:
            continue
        lacks = flags | MS_NOSUID | MS_NODEV
        for option in fields[5].split(","):
            lacks |= names.get(option, 0)
        call("mount", None, bytes(place), None, MS_REMOUNT | MS_BIND | lacks, None)


def give_up_capabilities() -> None:
    """Give up all capabilities, of this process and of all that it starts, for good."""
    libc = ctypes.CDLL(None)
    for capability in range(CAPABILITIES):  # more than there are: those are refused
        libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
    call("prctl", PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0)
    call("capset", ctypes.byref(header), ctypes.byref((ctypes.c_uint32 * 6)()))
    call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def _shut_calls(seccomp: bytes) -> None:
    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("steps", ctypes.c_char_p))

    call(
        "prctl",
        PR_SET_SECCOMP,
        SECCOMP_MODE_FILTER,
        ctypes.byref(Program(len(seccomp) // 8, seccomp)),
        0,
        0,
    )


def _bubblewrap(plan: dict[str, Any]) -> NoReturn:
    """Have ``bwrap`` do the same."""
    words = ["bwrap", "--unshare-user", "--unshare-ipc", "--unshare-pid", "--unshare-net"]
    words += ["--unshare-uts", "--unshare-cgroup-try", "--die-with-parent", "--new-session"]
    words += ["--cap-drop", "ALL", "--proc", "/proc", "--dev", "/dev"]
    size = ["--size", str(plan["tmpfs"]), "--tmpfs"]
    for folder in ("/dev/shm", "/tmp", *plan["folders"]):
        words += [*size, folder]
    for source, target, writable in plan["mounts"]:
        words += ["--bind" if writable else "--ro-bind", source, target]
    for link, text in plan["links"].items():
        words += ["--symlink", text, link]
    for device in plan["devices"]:
        words += ["--dev-bind", device, device]
    words += ["--remount-ro", "/proc", "--remount-ro", "/dev", "--remount-ro", "/"]
    reading, writing = os.pipe()
    os.write(writing, bytes.fromhex(plan["seccomp"]))  # far less than a pipe holds
    os.close(writing)
    os.set_inheritable(reading, True)
    words += ["--seccomp", str(reading), "--chdir", "/", "--", *plan["command"]]
    os.execvpe(words[0], words, plan["environment"])


if __name__ == "__main__":
    main()
