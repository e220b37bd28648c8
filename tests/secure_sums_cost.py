"""What a secure sum costs: ``python tests/secure_sums_cost.py [--sites 3 10] [--numbers 100000]``.

Prints the tables of docs/secure-sums.md: bytes to and from a site in each stage, and seconds of one
core, without a network between. All parties are in this process.
"""

from __future__ import annotations

import argparse
from statistics import mean

import numpy as np

from common.secure_sums.in_process import Transcript, secure_sum
from common.secure_sums.protocol import STAGES, majority


def measured(sites: int, numbers: int, dropouts: int = 0) -> Transcript:
    """Sum vectors of 32 bits of so many sites, some of which fail before they send theirs."""
    rng = np.random.default_rng(0)
    inputs = {
        f"site-{i:03}": rng.integers(0, 2**32, numbers, dtype=np.uint32) for i in range(sites)
    }
    transcript = Transcript()
    total, survivors = secure_sum(
        inputs, dict.fromkeys(list(inputs)[:dropouts], "mask"), transcript=transcript
    )
    assert (total == sum(inputs[name] for name in survivors)).all()
    return transcript


def row(cells: list[object]) -> None:
    """Print a row of a table."""
    print("|", " | ".join(map(str, cells)), "|", flush=True)


def main() -> None:
    """Measure, and print two tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sites", type=int, nargs="+", default=[3, 10, 50])
    parser.add_argument("--numbers", type=int, nargs="+", default=[100_000, 1_000_000])
    asked = parser.parse_args()
    cases = [(sites, numbers) for sites in asked.sites for numbers in asked.numbers]
    seconds = []
    row(["sites", "numbers", *STAGES, "beside the vector"])
    row(["---"] * (len(STAGES) + 3))
    for sites, numbers in cases:
        one = measured(sites, numbers)
        of = {stage: [e for e in one.exchanges if e.stage == stage] for stage in STAGES}
        down, up = (
            {stage: round(mean(len(getattr(e, what)) for e in of[stage])) for stage in STAGES}
            for what in ("request", "answer")
        )
        beside = sum(down.values()) + sum(up.values()) - 4 * numbers
        sizes = [f"{down[stage]:,} / {up[stage]:,}" for stage in STAGES]
        row([sites, f"{numbers:,}", *sizes, f"{beside / 4 / numbers:.2%}"])
        most = sites - majority(sites)
        worst = measured(sites, numbers, most)
        times = [mean(e.seconds for e in of[stage]) for stage in STAGES]
        server = sum(one.seconds.values()), sum(worst.seconds.values())
        seconds.append([sites, f"{numbers:,}", *(f"{t:.3f}" for t in (*times, *server)), most])
    print()
    row(["sites", "numbers", *STAGES, "server", "server, most fail", "of them fail"])
    row(["---"] * (len(STAGES) + 5))
    for cells in seconds:
        row(cells)


if __name__ == "__main__":
    main()
