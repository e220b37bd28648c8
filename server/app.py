"""The Flower ServerApp: it coordinates, and never sees a scan."""

from __future__ import annotations

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run one federation from its configuration to its run folder."""
    from common.tasks.task import read_run_config

    config = read_run_config(context.run_config)

    from server.rounds import federate

    federate(grid, config, run_id=str(context.run_id))
