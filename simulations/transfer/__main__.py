"""``python -m simulations.transfer WORK.json``: cells side by side; see `simulations.schedule`."""

from __future__ import annotations

import sys
from pathlib import Path

from common.reading import LARGEST_JSON, parse_json, read_bytes
from simulations.plan import Cell
from simulations.schedule import schedule
from simulations.transfer.run import TransferWork


def main() -> None:
    """Read the work and do it."""
    items = parse_json(read_bytes(Path(sys.argv[1]), limit=LARGEST_JSON))
    schedule([TransferWork(**{**item, "cell": Cell(**item["cell"])}) for item in items])


if __name__ == "__main__":
    main()
