"""Tables on a terminal of a training's summary, of projections and of measured speed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from simulations.console import out
from simulations.gan.generate import label_name
from simulations.report.ledger import promises, protection

if TYPE_CHECKING:
    from common.training.gan_state import GanTraining
    from simulations.gan.bench import Speed


def show_summary(summary: dict[str, Any]) -> None:
    """Show a training's distances beside those of real images.

    Raises
    ------
    FedscanError
        If the summary does not name its extractor.
    """
    from common.evaluation.generation import require_extractor

    extractor = require_extractor(summary)
    table = Table(
        title=f"{escape('+'.join(summary['sites']))}: {summary['images_seen'] / 1000:.1f} kimg in "
        f"{summary['seconds']:.0f} s, p {summary['p']:.3f}",
        caption=f"{summary['real']['n_real']} test images; extractor "
        f"{escape(extractor['name'])} {extractor['hash'][:12]}",
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("against the test images")
    table.add_column("images", justify="right")
    measures = ("frechet_distance", "kernel_distance", "precision", "recall")
    for name in measures:
        table.add_column(name.replace("_", "\n").replace("frechet", "Fréchet"), justify="right")
    for title, key in (("generated", "generated"), ("real training images", "real")):
        found = summary[key]
        numbers = ["–" if found[name] is None else f"{found[name]:.3g}" for name in measures]
        table.add_row(title, str(found["n_generated"]), *numbers)
    out.print(table)
    if summary["frechet_ratio"] is not None:
        out.print(f"Fréchet distance: {summary['frechet_ratio']:.1f} times the real one")
    statistics, real = summary["generated"]["statistics"], summary["real"]["statistics"]
    for words in (
        f"Without a network: power spectrum {statistics['spectrum_distance_db']:.2f} dB off (real "
        f"{real['spectrum_distance_db']:.2f}), sliced Wasserstein distance "
        f"{statistics['sliced_wasserstein']['mean']:.3g} (real "
        f"{real['sliced_wasserstein']['mean']:.3g}), MS-SSIM of pairs {statistics['ms_ssim']:.2f} "
        f"(real {statistics['ms_ssim_real']:.2f}: the lower, the more varied)",
        _copying(summary["copying"]),
        *map(protection, promises(summary)),
        f"Perceptual path length: {summary['path_length']:.3g}",
    ):
        out.print(words, markup=False)
    for reason in sorted(set(summary["generated"]["reasons"].values())):
        out.print(f"Not measured: {reason}", markup=False)


def note(training: GanTraining, metrics: Mapping[str, float]) -> str:
    """Put what a reader watches into one line; losses and speed are those last measured."""
    words = [f"{training.images_seen / 1000:.1f} kimg", f"p {training.p:.3f}"]
    if metrics:
        losses = {"G": "loss-generator", "D": "loss-discriminator"}  # D's has no noise
        words += [f"{one} {metrics[key]:.2f}" for one, key in losses.items() if key in metrics]
        words.append(f"{metrics['images-per-second']:.1f} img/s")
    return ", ".join(words)


def _copying(found: dict[str, Any]) -> str:
    if found["flagged"] is None:
        return f"Copies of training images: {found['reason']}"
    return (
        f"Copies of training images: {'FLAGGED, ' if found['flagged'] else ''}{found['reason']}; "
        f"half of them lie within {found['generated_median']:.3g} of one, half of the real test "
        f"images within {found['held_out_median']:.3g}"
    )


def show_projections(found: dict[str, Any]) -> None:
    """Show how close each picture was come to, from where."""
    table = Table(
        title=f"{found['steps']} steps in {found['space'].upper()}, extractor "
        f"{escape(found['extractor']['name'])}",
        title_justify="left",
    )
    table.add_column("picture")
    table.add_column("labels")
    for heading in ("distance, start", "distance, end", "RMS, start", "RMS, end"):
        table.add_column(heading, justify="right")
    for one in found["projections"]:
        numbers = [one[key] for key in ("distance_start", "distance", "rms_start", "rms")]
        table.add_row(
            escape(one["folder"]),
            escape(label_name(one["labels"])) or "–",
            *(f"{number:.4g}" for number in numbers),
        )
    out.print(table)


def show_speeds(speeds: list[Speed]) -> None:
    """Show figures of training's speed, and the seconds of its phases."""
    first = speeds[0]
    titles = {  # narrow enough for 80 columns
        "generator": "gener-\nator",
        "discriminator": "discrim-\ninator",
        "r1": "R1\n(1/16)",
        "path": "path\nlength\n(1/4)",
        "average": "average\nof G",
    }
    out.print(f"{first.device}; CPU threads: {first.threads}", markup=False)
    speed_table = Table(title="Training StyleGAN2-ADA", title_justify="left")
    phase_table = Table(title="Seconds a phase, optimizer step included", title_justify="left")
    for table, columns in (
        (speed_table, ["seconds an\niteration", "images\na second", "GFLOP"]),
        (speed_table, ["peak,\nGFLOP/s", "share\nof it", "memory,\nGiB"]),
        (phase_table, [titles.get(name, name) for name in first.seconds]),
    ):
        if not table.columns:
            table.add_column("size", no_wrap=True)
            table.add_column("precision", no_wrap=True)
        for column in columns:
            table.add_column(column, justify="right")
    for speed in speeds:
        memory = speed.memory_gib if speed.gpu_memory_gib is None else speed.gpu_memory_gib
        speed_table.add_row(
            speed.size,
            speed.precision,
            f"{speed.iteration_seconds:.3g}",
            f"{speed.images_per_second:.3g}",
            f"{speed.gflop:.1f}",
            f"{speed.peak_gflops:.0f}",
            f"{100 * speed.share_of_peak:.0f} %",
            f"{memory:.2f}",
        )
        phases = (f"{speed.seconds[name]:.3g}" for name in first.seconds)
        phase_table.add_row(speed.size, speed.precision, *phases)
    out.print(speed_table)
    out.print(phase_table)
