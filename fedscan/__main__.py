"""The command ``fedscan``, also as ``python -m fedscan``."""

from __future__ import annotations

from fedscan._app import put_on_path


def main() -> None:
    """Run the command line."""
    put_on_path()
    from simulations.cli import main as command_line

    command_line()


if __name__ == "__main__":
    main()
