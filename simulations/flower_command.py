"""Flower's own command line, which gives its local server more time to start, and shares none.

Usage: ``python -m simulations.flower_command ARG …``, as ``flwr ARG …``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

START_SECONDS = 180.0  # Flower's own 15 are too few on a busy machine


def own_server_answers(answers: Callable[[], bool], port: int) -> bool:
    """Tell whether a server answers on a port, and is a process that this one has started.

    Flower takes any server that answers for its own, also that of another run, or of another user,
    to whom the port went between choosing and binding it.
    """
    import psutil

    for process in psutil.Process().children(recursive=True) if answers() else ():
        with contextlib.suppress(psutil.Error):
            for one in process.net_connections(kind="tcp"):
                if one.status == psutil.CONN_LISTEN and one.laddr.port == port:
                    return True
    return False


def main() -> None:
    """Run Flower's command."""
    from flwr.cli import local_superlink

    answers, port = (
        local_superlink._is_local_superlink_started,
        int(local_superlink.LOCAL_SUPERLINK_HTTP_API_PORT),
    )
    local_superlink.LOCAL_SUPERLINK_STARTUP_TIMEOUT = START_SECONDS
    local_superlink._is_local_superlink_started = lambda: own_server_answers(answers, port)

    from flwr.cli.app import app

    app(prog_name="flwr")


if __name__ == "__main__":
    main()
