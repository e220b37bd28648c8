"""Check and time what needs a GPU, in ten minutes at most, and write docs/gpu.md.

``python tests/on_gpu.py [--out docs/gpu.md]`` runs the tests marked ``gpu``; ``fedscan bench-gan``
at 128 and 256 pixels in three precisions; and a federation of classifiers and one of generators, of
three sites that share the GPU. After each the GPU's memory in use is noted: nothing may be left.
Without a GPU it says so and exits with 1.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from processes import SCRIPTS

SIZES = ("128/16384/512/32", "256/16384/512/32")  # channels of ADA's 256-pixel set-up
PRECISIONS = ("float32", "bfloat16", "float16")
# Karras et al. (2020, arXiv 2006.06676), code's own table: one V100, seconds per 1000 images.
PUBLISHED = {"128": "12.8 to 13.7", "256": "21.6 to 24.2"}
FEW = ("run.rounds=2", "run.evaluate-every=2", "training.local-steps=8")
SHARED = (
    *("--gpus-per-site", "0.33", "--study", "skin-lesions", "--cohort", "three"),
    *(word for value in FEW for word in ("--set", value)),
)
LIMIT = 180.0  # seconds of one step


@dataclass(frozen=True)
class Step:
    """What was run, how long it took, and the GPU's memory in use afterwards, in MiB."""

    name: str
    seconds: float
    ended: int
    memory: int
    output: str


def gpu(query: str) -> str:
    """Ask the driver of the first GPU."""
    words = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader,nounits"]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.split("\n")[0]


def step(name: str, *words: str, cwd: Path) -> Step:
    """Run one command."""
    began = time.monotonic()
    try:
        done = subprocess.run(
            words, cwd=cwd, capture_output=True, text=True, timeout=LIMIT, check=False
        )
        ended, output = done.returncode, done.stdout
        sys.stderr.write(done.stderr[-2000:] if ended else "")
    except subprocess.TimeoutExpired:
        ended, output = 124, ""
    seconds = time.monotonic() - began
    found = Step(name, seconds, ended, int(gpu("memory.used")), output)
    sys.stderr.write(f"{name}: {ended}, {seconds:.0f} s, {found.memory} MiB in use\n")
    return found


def speeds(found: Step) -> list[str]:
    """Return rows of the table of training's speed."""
    rows = []
    for one in json.loads(found.output)["speeds"] if not found.ended else []:
        side, _, _, batch = one["size"].split("/")
        seconds = one["iteration_seconds"] / int(batch) * 1000
        rows.append(
            f"| {one['size']} | {one['precision']} | {seconds:.1f} | {PUBLISHED[side]} | "
            f"{one['gpu_memory_gib']:.1f} GiB |"
        )
    return rows


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/gpu.md"))
    asked = parser.parse_args()
    try:
        name, before = gpu("name"), int(gpu("memory.used"))
    except (OSError, subprocess.CalledProcessError):
        sys.exit("nvidia-smi finds no GPU here")
    fedscan, tests = str(SCRIPTS / "fedscan"), Path(__file__).parent
    bench = ["--device", "cuda", "--repeats", "3", "--format", "json"]
    for option, values in {"--size": SIZES, "--precision": PRECISIONS}.items():
        bench += [word for value in values for word in (option, value)]
    with tempfile.TemporaryDirectory(prefix="fedscan-gpu-") as folder:
        at = Path(folder)
        pytest = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-m", "gpu"]
        cohort = ("prepare", "phantom", "three", "--sites-count", "3")
        subprocess.run([fedscan, *cohort], cwd=at, check=True)
        generators = ("--set", "task=generation")
        steps = [
            step("tests marked `gpu`", *pytest, cwd=tests.parent),
            step("`bench-gan`", fedscan, "bench-gan", *bench, cwd=at),
            step("classifiers of three sites", fedscan, "run", *SHARED, cwd=at),
            step("generators of three sites", fedscan, "run", *generators, *SHARED, cwd=at),
        ]
    lines = [
        "# GPU",
        "",
        f"`python tests/on_gpu.py` on one {name}. Memory in use before: {before} MiB.",
        "",
        "| step | exit code | seconds | GPU memory in use afterwards |",
        "|---|---|---|---|",
        *(f"| {one.name} | {one.ended} | {one.seconds:.0f} | {one.memory} MiB |" for one in steps),
        "",
        "Training StyleGAN2-ADA (`fedscan bench-gan`; size is resolution, channel base, channel "
        "maximum, batch):",
        "",
        "| size | precision | seconds per 1000 images | published, one V100 | memory |",
        "|---|---|---|---|---|",
        *speeds(steps[1]),
        "",
    ]
    asked.out.write_text("\n".join(lines))
    sys.exit(max(one.ended for one in steps))


if __name__ == "__main__":
    main()
