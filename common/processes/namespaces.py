"""Linux namespaces for this process and all that it starts, by system calls alone.

A network namespace holds a loopback interface of its own: what listens there can be reached by no
process outside, whichever user's. When process 1 of a process namespace ends, the kernel kills
every other process in it. Both take a privileged user, or a user namespace, in which the user and
group keep their numbers and file permissions stay as they are. Devices are left alone.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import sys
from collections.abc import Callable
from pathlib import Path

# <linux/sched.h>, <linux/mount.h>, <linux/sockios.h>, <linux/if.h>; Python's os has them from 3.12.
CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 1 << 17, 1 << 28, 1 << 29, 1 << 30
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REC, MS_PRIVATE = 1 << 1, 1 << 2, 1 << 3, 1 << 14, 1 << 18
SIOCSIFFLAGS, IFF_UP = 0x8914, 1
PROCESSES = CLONE_NEWPID | CLONE_NEWNS  # a mount namespace too, since /proc is mounted anew
WITH_NETWORK = (  # the best first; a container may allow the network's alone: it covers up /proc
    CLONE_NEWNET | PROCESSES,
    CLONE_NEWNET | PROCESSES | CLONE_NEWUSER,
    CLONE_NEWNET,
    CLONE_NEWNET | CLONE_NEWUSER,
)
WITHOUT_NETWORK = (PROCESSES, PROCESSES | CLONE_NEWUSER)


def possible(*, network: bool = True) -> int:
    """Return the flags of the best namespaces that this system grants; 0 for none.

    A process of its own tries each, since none can be left again.

    Parameters
    ----------
    network : bool
        Whether one of the network is among them.
    """
    if sys.platform != "linux":
        return 0
    choices = (WITH_NETWORK if network else ()) + WITHOUT_NETWORK
    return next((flags for flags in choices if _exit_code(lambda f=flags: _try(f)) == 0), 0)


def enter(flags: int) -> int:
    """Enter namespaces; a new process namespace begins with a child of this process.

    Parameters
    ----------
    flags : int
        As :func:`possible` gives them.

    Returns
    -------
    int
        0 in the process that is in all of them. Where there is a process namespace the call
        returns twice: in the caller with the child's number, and in the child, its process 1.

    Raises
    ------
    OSError
        If the system refuses.
    """
    user, group = os.getuid(), os.getgid()
    call("unshare", flags)
    if flags & CLONE_NEWUSER:
        _write("/proc/self/setgroups", "deny")  # which the kernel asks for before the next
        _write("/proc/self/gid_map", f"{group} {group} 1")
        _write("/proc/self/uid_map", f"{user} {user} 1")
    if flags & CLONE_NEWNET:
        _bring_up_loopback()
    if not flags & CLONE_NEWPID:
        return 0
    if child := os.fork():
        return child
    call("mount", None, b"/", None, MS_REC | MS_PRIVATE, None)  # nothing shows outside
    call("mount", b"proc", b"/proc", b"proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, None)
    return 0


def _try(flags: int) -> int:
    child = enter(flags)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) if child else 0


def _exit_code(attempt: Callable[[], int]) -> int:
    """Run in a child, which ends with what it returns, or with 1."""
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 1
    try:
        code = attempt()
    finally:
        os._exit(code)  # also a child of this child, and without a traceback


def call(name: str, *arguments: object) -> None:
    """Call a function of the C library that answers 0 where it has done what was asked.

    Raises
    ------
    OSError
        If it has not.
    """
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def _write(path: str, text: str) -> None:
    Path(path).write_text(text)


def _bring_up_loopback() -> None:
    import fcntl

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sh22x", b"lo", IFF_UP)  # struct ifreq
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, request)
