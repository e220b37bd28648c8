"""The system calls that a box may not make, as a program for the kernel's filter.

A list of what is denied, not of what is allowed: PyTorch, CUDA and the C library change theirs with
every version. What is denied leads to other processes' memory, to mounts, to new namespaces (in
which a process has capabilities again), to memory that no limit counts, or into parts of the kernel
where escapes were found again and again. Most need a capability that a box does not have either.
"""

from __future__ import annotations

import errno
import platform
import struct

from common.errors import FedscanError

# Name: number on x86_64 (<asm/unistd_64.h>) and on aarch64 (<asm-generic/unistd.h>).
NOT_PERMITTED: dict[str, tuple[int | None, int | None]] = {
    # other processes
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
    "kcmp": (312, 272),
    "pidfd_getfd": (438, 438),
    "move_pages": (279, 239),
    "migrate_pages": (256, 238),
    # mounts and namespaces
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "statmount": (457, 457),
    "listmount": (458, 458),
    "open_tree_attr": (467, 467),
    "unshare": (272, 97),
    "setns": (308, 268),
    # files past their folder's permissions
    "open_by_handle_at": (304, 265),
    "name_to_handle_at": (303, 264),
    "fanotify_init": (300, 262),
    # the kernel's keys
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    # memory that neither a process's limits nor a file system's size count
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "shmat": (30, 196),
    "shmctl": (31, 195),
    "msgget": (68, 186),
    "semget": (64, 190),
    "mq_open": (240, 180),
    # large or privileged parts of the kernel
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "reboot": (169, 142),
    "syslog": (103, 116),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "vhangup": (153, 58),
    "personality": (135, 92),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "clock_adjtime": (305, 266),
    "adjtimex": (159, 171),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "lookup_dcookie": (212, 18),
    "nfsservctl": (180, 42),
    "iopl": (172, None),
    "ioperm": (173, None),
    "modify_ldt": (154, None),
    "uselib": (134, None),
    "sysfs": (139, None),
    "_sysctl": (156, None),
}
# These answer as on a kernel without them, so that libraries fall back on what they did before.
NOT_THERE: dict[str, tuple[int | None, int | None]] = {
    "clone3": (435, 435),  # its flags lie in memory, where no filter sees them
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "memfd_create": (319, 279),
}
CLONE, SOCKET, SOCKETPAIR = (56, 220), (41, 198), (53, 199)
FAMILIES = (1, 2, 10)  # AF_UNIX, AF_INET, AF_INET6; no netlink, no vsock, no packets
# CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET
NEW_NAMESPACES = 0x20000 | 0x2000000 | 0x4000000 | 0x8000000 | 0x10000000 | 0x20000000 | 0x40000000
ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # <linux/audit.h>

# <linux/bpf_common.h>, <linux/seccomp.h>
LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
KILL, ERROR, ALLOW = 0x80000000, 0x00050000, 0x7FFF0000
NUMBER, ARCHITECTURE, FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data
X32 = 0x40000000  # calls of another ABI, with numbers of its own


def program(machine: str = "") -> bytes:
    """Return the filter as the kernel takes it, an array of ``struct sock_filter``.

    Parameters
    ----------
    machine : str
        The processor's architecture; by default this machine's.

    Raises
    ------
    FedscanError
        For an architecture whose numbers are not known here.
    """
    machine = machine or platform.machine()
    if machine not in ARCHITECTURES:
        raise FedscanError(
            f"a sandbox needs a processor of {' or '.join(ARCHITECTURES)}; this one is {machine}"
        )
    column, audit = ARCHITECTURES[machine]
    denied = _answer(errno.EPERM)
    steps = [_step(LOAD, ARCHITECTURE), _step(EQUAL, audit, 1, 0), _step(RETURN, KILL)]
    steps.append(_step(LOAD, NUMBER))
    if machine == "x86_64":
        steps += [_step(AT_LEAST, X32, 0, 1), denied]
    for table, answer in ((NOT_PERMITTED, denied), (NOT_THERE, _answer(errno.ENOSYS))):
        for numbers in table.values():
            if (number := numbers[column]) is not None:
                steps += [_step(EQUAL, number, 0, 1), answer]
    allowed = _step(RETURN, ALLOW)
    steps += [_step(EQUAL, CLONE[column], 0, 4), _step(LOAD, FIRST_ARGUMENT)]
    steps += [_step(ANY_BIT, NEW_NAMESPACES, 0, 1), denied, allowed]
    steps += [_step(EQUAL, SOCKET[column], 1, 0), _step(EQUAL, SOCKETPAIR[column], 0, 5)]
    steps.append(_step(LOAD, FIRST_ARGUMENT))
    steps += [_step(EQUAL, family, len(FAMILIES) - k, 0) for k, family in enumerate(FAMILIES)]
    return b"".join([*steps, denied, allowed])


def _step(code: int, value: int, if_so: int = 0, if_not: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_so, if_not, value)


def _answer(number: int) -> bytes:
    return _step(RETURN, ERROR | number)
