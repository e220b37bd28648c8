"""MLflow: one run in a store of files, which ``mlflow ui --backend-store-uri`` shows."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from common.config.run_config import Value
from common.files import make_folder
from common.metrics_log import Row
from simulations.track import name_of

NEEDS = "mlflow"
AT_ONCE = 1000  # metrics in a batch, MLflow's limit
PARAMETERS = 100  # in a batch
OFFLINE = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
OF_FILES = {"MLFLOW_ALLOW_FILE_STORE": "true"}  # newer ones ask for this


@contextlib.contextmanager
def opened(folder: Path, run: str, config: dict[str, Value]) -> Iterator[Store]:
    """Open a run in the store of files in the folder; the experiment is called fedscan."""
    os.environ |= OFFLINE | OF_FILES
    from mlflow.entities import Param
    from mlflow.tracking import MlflowClient

    client = MlflowClient(make_folder(folder).absolute().as_uri())
    known = client.get_experiment_by_name("fedscan")
    experiment = known.experiment_id if known else client.create_experiment("fedscan")
    number = client.create_run(experiment, run_name=run).info.run_id
    status = "FAILED"
    try:
        told = [Param(key, str(value)) for key, value in config.items()]
        for first in range(0, len(told), PARAMETERS):
            client.log_batch(number, params=told[first : first + PARAMETERS])
        yield Store(client, number)
        status = "FINISHED"
    finally:
        client.set_terminated(number, status)


class Store:
    """A :class:`simulations.track.Sink`."""

    def __init__(self, client: Any, number: str) -> None:
        self._client, self._number = client, number

    def write(self, rows: Iterable[Row]) -> None:
        """Write each number under its round; what is not finite is left out."""
        from mlflow.entities import Metric

        now = round(time.time() * 1000)
        told = [
            Metric(name_of(row), row.value, now, row.round)
            for row in rows
            if math.isfinite(row.value)
        ]
        for first in range(0, len(told), AT_ONCE):
            self._client.log_batch(self._number, metrics=told[first : first + AT_ONCE])
