"""``fedscan track``: a run's metrics for TensorBoard or MLflow, afterwards or while it runs."""

from __future__ import annotations

import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from common.errors import ConfigError
from simulations.options import absolute

EVERY = 2.0  # seconds between two looks at the log


class Backend(StrEnum):
    """Where to."""

    tensorboard = "tensorboard"
    mlflow = "mlflow"


def track(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="Folder of a run, also of one in progress.")
    ],
    to: Annotated[Backend, typer.Option(help="Each needs its extra: pip install 'fedscan[NAME]'.")],
    out: Annotated[Path, typer.Option(help="Folder of TensorBoard or of MLflow's store.")],
    follow: Annotated[
        bool, typer.Option("--follow", help="Go on until the run has ended.")
    ] = False,
) -> None:
    """Write a run's metrics and configuration for TensorBoard or MLflow; nothing is sent.

    For example:

    - `fedscan track runs/RUN --to tensorboard --out board`, then `tensorboard --logdir board`
    - `fedscan track runs/RUN --to mlflow --out store --follow`
    """
    from common.metrics_log import MetricsTail
    from common.reading import read_json
    from common.run_folder import FAILURE, MANIFEST, METRICS, SUMMARY
    from simulations.track import follow as following
    from simulations.track import open_sink

    folder = absolute(run)
    if not all((folder / name).is_file() for name in (MANIFEST, METRICS)):
        raise ConfigError(
            f"{run}: accepted is the folder of a run, with its {MANIFEST} and {METRICS}"
        )
    config = read_json(folder / MANIFEST).get("config", {})
    tail = MetricsTail(folder / METRICS)
    with (
        open_sink(to.value, absolute(out), folder.name, config) as sink,
        following(sink, tail.new_rows) as step,
    ):
        step()
        while follow and not any((folder / end).is_file() for end in (SUMMARY, FAILURE)):
            time.sleep(EVERY)
            step()
    typer.echo(str(absolute(out)))
