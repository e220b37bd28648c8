"""Flower's own command line, which gives its local server more time to start.

Usage: ``python -m simulations.flower_command ARG …``, as ``flwr ARG …``.
"""

from __future__ import annotations

START_SECONDS = 180.0  # Flower's own 15 are too few on a busy machine


def main() -> None:
    """Run Flower's command."""
    from flwr.cli import local_superlink

    local_superlink.LOCAL_SUPERLINK_STARTUP_TIMEOUT = START_SECONDS

    from flwr.cli.app import app

    app(prog_name="flwr")


if __name__ == "__main__":
    main()
