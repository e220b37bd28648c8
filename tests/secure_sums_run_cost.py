"""What secure sums cost in a run: ``python tests/secure_sums_run_cost.py COHORT``.

Prints a table of docs/secure-sums.md: the same simulation, plain and with secure sums; bytes to and
from a site in a round of training, seconds of a whole round, and how far the models are apart.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from pathlib import Path
from statistics import mean

from safetensors.torch import load_file

from common.metrics_log import read_rows


def run(folder: Path, cohort: Path, values: list[str]) -> Path:
    """Run a simulation; return its folder."""
    command = ["fedscan", "run", "--cohort", str(cohort), "--out", str(folder)]
    for value in values:
        command += ["--set", value]
    subprocess.run([*command, "--format", "json"], check=True, stdout=subprocess.PIPE)
    (found,) = folder.iterdir()
    return found


def measured(folder: Path) -> tuple[float, float, float]:
    """Return bytes to and from a site in a round of training, and seconds of a round."""
    rows = list(read_rows(folder / "metrics.jsonl"))
    summary = json.loads((folder / "summary.json").read_text())
    down, up = (
        mean(row.value for row in rows if row.name == f"bytes-{way}-train")
        for way in ("down", "up")
    )
    validated = [row.seconds for row in rows if row.split == "val" and row.name == "loss"]
    first, last = min(validated), max(validated)
    return down, up, (last - first) / (summary["rounds"] - 1)


def main() -> None:
    """Run twice, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cohort", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--set", action="append", default=[])
    given = parser.parse_args()
    values = [f"run.rounds={given.rounds}", *given.set]
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary)
        folders = {
            "plain": run(home / "plain", given.cohort, values),
            "secure sums": run(home / "sums", given.cohort, [*values, "privacy.secure-sums=true"]),
        }
        print("| run | bytes to a site | bytes from a site | seconds a round |")
        print("|---|---|---|---|")
        for name, folder in folders.items():
            down, up, seconds = measured(folder)
            print(f"| {name} | {down:,.0f} | {up:,.0f} | {seconds:.1f} |")
        plain, summed = (load_file(one / "model.safetensors") for one in folders.values())
        apart = max(float((plain[name] - summed[name]).abs().max()) for name in plain)
        print(f"\nLargest difference of a weight: {apart:.1e}")


if __name__ == "__main__":
    main()
