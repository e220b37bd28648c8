"""By how much the server's resident memory grows per round of a run, with a 95 % interval.

``python tests/memory_slope.py RUN [--from 10]`` fits a line to the log of metrics from a round on,
since libraries are loaded in the first. The interval is Student's, widened for the correlation of
one round's residual with the next.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
from scipy import stats

from common.metrics_log import SERVER_MEMORY, read_rows


def slope(rounds: np.ndarray, memory: np.ndarray) -> tuple[float, float]:
    """Return MiB a round, and half of the interval."""
    line = stats.linregress(rounds, memory)
    left = memory - (line.intercept + line.slope * rounds)
    correlation = float(np.clip(np.corrcoef(left[:-1], left[1:])[0, 1], 0, 0.95))
    independent = max(4.0, len(rounds) * (1 - correlation) / (1 + correlation))
    error = line.stderr * math.sqrt((len(rounds) - 2) / (independent - 2))
    return float(line.slope), float(stats.t.ppf(0.975, independent - 2) * error)


def main() -> None:
    """Print the slope of a run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--from", type=int, default=10, dest="first")
    asked = parser.parse_args()
    rows = [row for row in read_rows(asked.run / "metrics.jsonl") if row.name == SERVER_MEMORY]
    rows = [row for row in rows if row.round >= asked.first]
    rounds, memory = (np.array([getattr(row, k) for row in rows]) for k in ("round", "value"))
    found, half = slope(rounds, memory)
    print(
        f"{len(rows)} rounds, {memory.min():.0f} to {memory.max():.0f} MiB: "
        f"{found:+.3f} MiB a round (95 % CI {found - half:+.3f} to {found + half:+.3f})"
    )


if __name__ == "__main__":
    main()
