"""A command and all that it starts, ended together: see :mod:`common.processes.supervisor`."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from common.files import write_atomically
from common.processes.supervisor import SHARED


class ProcessGroup:
    """A command and all that it started: see :mod:`common.processes.supervisor`."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        # False also of one that has ended before it could say so.
        self.shares_network = process.stdout.readline() == f"{SHARED}\n".encode()

    @property
    def pid(self) -> int:
        """Number of the first ancestor of everything that the command starts."""
        return self._process.pid

    def ended(self, timeout: float) -> bool:
        """Wait up to ``timeout`` seconds; say whether the command has ended."""
        import select

        if self._process.poll() is not None:
            return True
        ready, _, _ = select.select([self._process.stdout], [], [], timeout)
        return bool(ready)


@contextlib.contextmanager
def process_group(
    command: list[str],
    *,
    cwd: Path,
    environment: Mapping[str, str],
    log_path: Path | None = None,
    until_ended: str | None = None,
    share_network: bool = False,
    share_all: bool = False,
    stderr: int | None = None,
    pass_descriptor: int | None = None,
) -> Iterator[ProcessGroup]:
    """Run a command; on leaving, end it and all that it started.

    That holds however the block is left, and when this very process is killed; then the folder
    ``cwd``, which is the command's own, is removed too.

    Parameters
    ----------
    command : list of str
    cwd : Path
    environment : mapping of str to str
    log_path : Path, optional
        File for the command's output; without one it goes to this process's standard error.
    until_ended : str, optional
        The command has not ended before every process that it started with this in its command
        line has.
    share_network : bool
        The command is to reach this machine's network.
    share_all : bool
        It is to see this machine's other processes, too. Then nothing ends what it started where
        this process and the supervisor are killed in one moment.
    stderr : int, optional
        Descriptor for the command's output, where it goes to no file.
    pass_descriptor : int, optional
        Descriptor that the command has too, under the same number.

    Yields
    ------
    ProcessGroup
    """
    options = ["--remove", str(cwd)]
    if until_ended:
        options += ["--until-ended", until_ended]
    if share_network:
        options.append("--share-network")
    if share_all:
        options.append("--share-all")
    passed = () if pass_descriptor is None else (pass_descriptor,)
    options += [f"--pass-descriptor={number}" for number in passed]
    if log_path:
        write_atomically(log_path, b"")  # for its owner alone: a traceback may name scans
    with log_path.open("w") if log_path else contextlib.nullcontext() as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "common.processes.supervisor", *options, *command],
            cwd=cwd,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log or stderr,
            pass_fds=passed,
            bufsize=0,  # what has been read is not to hide from select
            start_new_session=True,  # Ctrl-C reaches us, and we close the group's input
        )
    try:
        yield ProcessGroup(process)
    finally:
        process.stdin.close()
        process.stdout.read()  # until the last supervisor has ended, even if the first was killed
        process.wait()
        process.stdout.close()
