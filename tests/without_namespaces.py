"""Run a command where the kernel grants no network namespace, as in many a container.

Usage: ``python tests/without_namespaces.py COMMAND ARG …``. In a user namespace of its own, whose
limit is set to none; where even that cannot be made, the machine itself grants none.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

from common.processes import namespaces

if __name__ == "__main__":
    with contextlib.suppress(OSError):
        namespaces.enter(namespaces.CLONE_NEWUSER)
        Path("/proc/sys/user/max_net_namespaces").write_text("0")
    os.execv(sys.argv[1], sys.argv[1:])
