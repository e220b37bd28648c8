"""Kill a run with all its processes at random moments, resume it each time, and compare the result.

``python tests/kill_and_resume.py [--kills 30] [--command run] [--rounds 30]`` prints how often a
run was killed, in which rounds, and whether its files are, byte for byte, an undisturbed run's.
Moments are uniform over the time that the undisturbed run took.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import tempfile
import time
from collections import Counter
from pathlib import Path

from kills import kill_tree, result, started

from common.imaging.cohorts import write_cohort

STEPS = ["training.local-steps=2", "training.batch-size=4", "data.size=16"]


def round_of(folder: Path) -> int:
    """Return the last whole round of a run."""
    try:
        return json.loads((folder / "checkpoint" / "state.json").read_text())["state"]["round"]
    except FileNotFoundError:
        return 0


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--command", choices=["run", "federate"], default="run")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    draw, home = random.Random(asked.seed), Path(tempfile.mkdtemp(prefix="fedscan-kills-"))
    try:
        cohort = write_cohort(home / "cohort", {"north": 8, "island": 4}, n_test=4, seed=5)
        values = [f"run.rounds={asked.rounds}", *STEPS]
        words = ["--cohort", str(cohort), *(word for v in values for word in ("--set", v))]
        at = {"cwd": home, "cache": home / "cache"}
        whole, began = home / "whole", time.monotonic()
        assert started(asked.command, [*words, "--out", str(whole)], **at).wait() == 0
        (undisturbed,), longest = whole.iterdir(), time.monotonic() - began
        kills, runs, same, rounds = 0, 0, 0, Counter()
        while kills < asked.kills:
            out = home / f"out-{runs}"
            process = started(asked.command, [*words, "--out", str(out)], **at)
            while True:
                end = time.monotonic() + draw.uniform(0, longest)
                while process.poll() is None and (kills == asked.kills or time.monotonic() < end):
                    time.sleep(0.05)
                if process.poll() is not None:
                    break
                kill_tree(process)
                kills += 1
                found = list(out.glob("*/launch.json")) if out.is_dir() else []
                if not found:  # it was killed before it had a folder
                    process = started(asked.command, [*words, "--out", str(out)], **at)
                    continue
                folder = found[0].parent
                rounds[round_of(folder)] += 1
                print(f"kill {kills}: {round_of(folder)} rounds done", flush=True)
                if (folder / "summary.json").exists():
                    break
                process = started(asked.command, ["--resume", str(folder)], **at)
            runs += 1
            (folder,) = out.iterdir()
            same += result(folder) == result(undisturbed)
        print(f"{kills} kills of {runs} runs, by rounds done: {dict(sorted(rounds.items()))}")
        print(f"{same} of {runs} runs ended in the same bytes")
    finally:
        shutil.rmtree(home, ignore_errors=True)
    raise SystemExit(same != runs)


if __name__ == "__main__":
    os.environ["FEDSCAN_TEST"] = str(os.getpid())
    main()
