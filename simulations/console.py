"""What a person sees: a progress bar on a terminal, plain lines elsewhere, tables, errors."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column, Table
from rich.text import Text

from common.run_folder import TOGETHER


class _Plain(Console):
    """Shows what others wrote, in names and in words of failures, without obeying it.

    Rich leaves the escape character in a text, and a terminal would do what follows it.
    """

    def render_str(self, text: str, **options: Any) -> Text:
        safe = "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)
        return super().render_str(safe, **{"emoji": False} | options)


class _Aside(_Plain):
    """Standard error, which may be lost: the work goes on, and its exit code stays."""

    def _check_buffer(self) -> None:  # Rich has a hook for pipes alone
        try:
            super()._check_buffer()
        except OSError:  # a terminal that was closed, a full disk under a log
            self.on_broken_pipe()

    def on_broken_pipe(self) -> None:
        self.quiet = True
        # What could not be written waits still, and would fail again when the process ends.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stderr.fileno())
        os.close(nowhere)


out = _Plain(highlight=False)  # results: what a pipe should get
err = _Aside(stderr=True, highlight=False)  # everything said on the way
CLASSIFICATION = {
    "balanced_accuracy": "balanced accuracy",
    "auroc": "AUROC",
    "sensitivity_at_90_specificity": "sens. at 0.9 spec.",
}
BEFALLEN = {
    "rounds_lost": "it was away, or its answers were not used",
    "rounds_share_bounded": "its votes were bounded by most-share",
    "rounds_norm_bounded": "its update was shortened by most-norm",
}
GENERATION = {
    "frechet_distance": "Fréchet distance",
    "kernel_distance": "kernel distance",
    "precision": "precision",
    "recall": "recall",
}
PLAIN_EVERY = 10.0  # seconds between two plain lines that say nothing new


def counted(n: int, word: str, many: str = "") -> str:
    """Return a number with its word: 1 volume, 2 volumes; ``many`` where no s makes the plural."""
    return f"{n} {word if n == 1 else many or word + 's'}"


class Steps:
    """A count of steps with a word on each: a bar on a terminal, else lines on stderr.

    Parameters
    ----------
    title : str
    total : int
    bar : Progress or None
        Where to show it; None for plain lines.
    quiet : bool
        Show nothing at all.
    """

    def __init__(
        self, title: str, total: int, bar: Progress | None, *, quiet: bool = False
    ) -> None:
        self.title, self.total, self.done = title, total, 0
        self._bar, self._quiet = bar, quiet
        self._task = bar.add_task(title, total=total, note="") if bar else None
        self._last_line = time.monotonic()

    def advance(self, count: int = 1, note: str = "", *, always: bool = False) -> None:
        """Count steps as done; ``always`` prints a plain line even soon after another."""
        self.done += count
        if self._bar:
            self._bar.update(self._task, advance=count, note=note)
            return
        if self._quiet:
            return
        now = time.monotonic()
        if always or self.done == self.total or now - self._last_line > PLAIN_EVERY:
            self._last_line = now
            line = f"{self.title} {self.done}/{self.total} {note}".rstrip()
            err.print(line, markup=False, soft_wrap=True)

    def tell(self, line: str) -> None:
        """Print a line of its own, above the bar."""
        if not self._quiet:
            err.print(line, markup=False, soft_wrap=True)

    def say(self, note: str) -> None:
        """Say what goes on, without counting."""
        if self._bar:
            self._bar.update(self._task, note=note)
        elif not self._quiet:
            err.print(f"{self.title}: {note}", markup=False, soft_wrap=True)


@contextlib.contextmanager
def counting(title: str) -> Iterator[Callable[[int, int, str], None]]:
    """Show progress of work in parts, each told as: done, total, part."""
    bar: Steps | None = None
    part = ""
    with contextlib.ExitStack() as stack:

        def count(done: int, total: int, name: str) -> None:
            nonlocal bar, part
            if name != part:
                stack.close()  # one bar a part: the total is known part by part
                part, bar = name, stack.enter_context(steps(f"{title}, {name}", total))
            bar.advance(done - bar.done)

        yield count


@contextlib.contextmanager
def steps(title: str, total: int, *, quiet: bool = False) -> Iterator[Steps]:
    """Show progress over ``total`` steps until the block is left."""
    if quiet or not err.is_terminal:
        yield Steps(title, total, None, quiet=quiet)
        return
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=12),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        # The one column that gives way when the terminal is narrow.
        TextColumn(
            "{task.fields[note]}",
            markup=False,
            table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis"),
        ),
        console=err,
        expand=True,
    )
    with bar:
        yield Steps(title, total, bar)


def _lacking(summary: Mapping[str, Any], columns: Collection[str]) -> str:
    """Say why there are dashes in a run's table, in one line."""
    generation = "generation" in summary
    why: dict[str, list[str]] = {}
    for name, site in summary["sites"].items():
        found = site.get("generation", {}) if generation else site
        absent = [m for m in columns if m not in found]
        undefined = [m for m in columns if found.get(m, 0.0) is None]
        if absent:
            lost = len(absent) == len(columns) and site.get("rounds_lost")
            why.setdefault("no answer from" if lost else "withheld by", []).append(name)
        if undefined and generation:
            why.setdefault("too few images at", []).append(name)
        elif undefined:
            # Of more classes, AUROC is defined where the positive one is missing.
            single = "auroc" in undefined
            reason = (
                "test images of one class only" if single else "no test image of the positive class"
            )
            why.setdefault(f"{reason} at", []).append(name)
    if generation and not why and any(summary["generation"].get(m) is None for m in columns):
        why["too few images, or moments withheld, for a distance of"] = ["all sites together"]
    return escape("; ".join(f"{reason} {', '.join(names)}" for reason, names in why.items()))


def show_run(summary: Mapping[str, Any]) -> None:
    """Print each site's test result of a run, whatever its task."""
    generation = "generation" in summary
    what = "generator" if generation else "model"
    secret = TOGETHER in summary
    sites = summary["sites"]
    if secret:
        sites = {"all": {**summary[TOGETHER], "generation": summary.get("generation")}}
    whose = "All sites'" if secret else "Each site's"
    table = Table(
        title=f"{whose} test images, {what} of round {summary['best_round']} "
        f"of {summary['rounds']}, {summary['seconds']:.0f} s after the start-up",
        title_justify="left",
    )
    columns = GENERATION if generation else CLASSIFICATION
    if not generation:  # of more than two classes, sensitivity is measured where one is positive
        told = {m for site in sites.values() for m in columns if m in site}
        columns = {m: words for m, words in columns.items() if m in (told or columns)}
    table.add_column("site")
    for heading in ("train", "test", *columns.values()):
        table.add_column(heading, justify="right")
    rows = [(escape(name), site) for name, site in sites.items()]
    if generation and not secret:
        counts = {
            key: sum(site[key] for site in summary["sites"].values())
            for key in ("n_train", "n_test")
        }
        rows.append(("all", {**counts, "generation": summary["generation"]}))
    for name, site in rows:
        found = site.get("generation", {}) if generation else site  # a site may tell nothing
        numbers = [
            "–" if (v := found.get(m)) is None else f"{v:.{2 if m == 'frechet_distance' else 3}f}"
            for m in columns
        ]
        counted = (str(site.get(key, "–")) for key in ("n_train", "n_test"))
        table.add_row(name, *counted, *numbers)
    out.print(table)
    if secret:
        out.print("Secure sums tell nothing of single sites.")
    elif lacking := _lacking(summary, columns):
        out.print(f"–: {lacking}", soft_wrap=True)
    if summary.get("selected_by") == "last round":
        out.print("No site told how well any round fared: the model is that of the last round.")
    for name, site in summary["sites"].items():
        for key, what in BEFALLEN.items():
            if number := site.get(key):
                rounds = f"{number} of {summary['rounds']} rounds"
                why = "fedscan attendance tells why"
                out.print(f"Site '{escape(name)}': {what} in {rounds}; {why}.")
