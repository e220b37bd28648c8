"""Comparisons: what they are asked for, and what came of them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from common.run_folder import SUMMARY
from fedscan._settings import absolute, overrides, read_folder


def benchmark(
    *,
    preset: str = "default",
    study: str | Path | None = None,
    cohort: str | Path | None = None,
    strategies: Sequence[str] | None = None,
    arms: Sequence[str] | None = None,
    repetitions: int | None = None,
    sites: int | None = None,
    test_scans: int | None = None,
    out: str | Path = "benchmark",
    gpus_per_cell: float = 0.0,
    cell_timeout: float = 3600.0,
    resume: bool = False,
    **settings: bool | int | float | str,
) -> Comparison:
    """Compare centralized, local-only and federated training, as ``fedscan benchmark`` does.

    Parameters
    ----------
    preset : str
        As ``fedscan benchmark --preset`` takes it.
    study, cohort, sites, test_scans, **settings
        As of ``fedscan.run``.
    strategies : sequence of str, optional
        The preset's by default.
    arms : sequence of {"centralized", "local", "federated"}, optional
    repetitions : int, optional
    out : str or Path
        The comparison's folder.
    gpus_per_cell : float
        Share of a GPU for each training.
    cell_timeout : float
        Seconds after which one training is ended.
    resume : bool
        Run only what is missing.

    Returns
    -------
    Comparison

    Raises
    ------
    ConfigError, DataContractError
        Before anything is started.
    FedscanError
        The comparison failed.
    """
    from simulations.compare import Request, compare

    plan = {
        "strategies": None if strategies is None else list(strategies),
        "arms": None if arms is None else list(arms),
        "repetitions": repetitions,
        "test-scans": test_scans,
    }
    where = absolute(out)
    assert where is not None
    request = Request(
        preset=preset,
        overrides=plan,
        run=overrides(study, None, settings),
        cohort=absolute(cohort),
        sites=sites,
        out=where,
        gpus_per_cell=gpus_per_cell,
        cell_timeout=cell_timeout,
    )
    compare(request, resume=resume, dry_run=False)
    return load_benchmark(where)


def load_benchmark(path: str | Path) -> Comparison:
    """Read a comparison's folder.

    Raises
    ------
    ConfigError
        No comparison is there.
    """
    where = absolute(path)
    assert where is not None
    return Comparison(where)


class Comparison:
    """What ``fedscan benchmark`` has compared.

    Attributes
    ----------
    path : Path
        Its folder.
    summary : dict
        What ``summary.json`` holds: means, intervals and differences.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.summary: dict[str, Any] = read_folder(path / SUMMARY)

    def __repr__(self) -> str:
        return f"Comparison({str(self.path)!r})"

    @cached_property
    def results(self) -> pd.DataFrame:
        """``results.csv``, with one row for each number."""
        from simulations.collect import RESULTS
        from simulations.results import read_table

        return read_table(self.path / RESULTS)

    @property
    def report(self) -> Path:
        """The report, an HTML file."""
        return self.path / "report.html"

    @property
    def unfinished(self) -> list[str]:
        """Trainings that did not end well; ``resume=True`` runs them again."""
        from simulations.compare import unfinished

        return unfinished(self.path)
