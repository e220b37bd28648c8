"""A run's folder: what was asked for, what happened, what came out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from common.config.run_config import RunConfig
from common.files import make_folder, write_json
from common.metrics_log import MetricsLog
from common.provenance import source_hash, versions

MANIFEST, METRICS, SUMMARY, FAILURE = (
    "manifest.json",
    "metrics.jsonl",
    "summary.json",
    "failure.json",
)


def default_output_dir() -> Path:
    """Folder for run folders when the run config names none."""
    from platformdirs import user_data_path

    return user_data_path("fedscan") / "runs"


class RunFolder:
    """``OUTPUT/<run-id>/``.

    Parameters
    ----------
    config : RunConfig
        Its ``output_dir`` is OUTPUT.
    run_id : str
        Flower's.
    """

    def __init__(self, config: RunConfig, run_id: str) -> None:
        self.config, self.run_id = config, run_id
        self.path = Path(config.run.output_dir or default_output_dir()) / run_id
        make_folder(self.path)
        self.metrics = MetricsLog(self.path / METRICS)

    def write_manifest(self, sites: dict[str, dict[str, Any]], first_weights: str) -> None:
        """Write what is known before training: configuration, sites with counts, versions.

        ``first_weights`` is the fingerprint by which sites approve weights that they cannot build.
        """
        write_json(
            self.path / MANIFEST,
            {
                "run_id": self.run_id,
                "config": self.config.to_flower(),
                "sites": sites,
                "first_weights": first_weights,
                "versions": versions(),
                "source_hash": source_hash(),
            },
        )

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write the result; its presence says that the run is whole."""
        write_json(self.path / SUMMARY, summary)

    def write_failure(self, failure: dict[str, str]) -> None:
        """Write why the run ended early: site, phase, error, traceback."""
        write_json(self.path / FAILURE, failure)
