"""The command ``fedscan``, also as ``python -m fedscan``."""

from __future__ import annotations

import contextlib
import sys
from typing import NoReturn

from fedscan._app import put_on_path


def main() -> None:
    """Run the command line; what happens before it has begun ends in one line, too."""
    try:
        put_on_path()
        from simulations.cli import main as command_line

        command_line()
    except KeyboardInterrupt:
        _end("Interrupted", 130)
    except MemoryError:
        _end("Error: out of memory before fedscan has begun: end other programs", 1)


def _end(words: str, code: int) -> NoReturn:
    with contextlib.suppress(Exception):  # nobody listens, or there is no room for the line
        print(words, file=sys.stderr, flush=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
