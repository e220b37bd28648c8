"""What a process is told of the cell that it is to train."""

from __future__ import annotations

from dataclasses import dataclass

from common.config.run_config import RunConfig
from common.tasks.task import read_run_config
from simulations.plan import Cell


@dataclass(frozen=True)
class Work:
    """One cell with all that its process needs to know.

    Parameters
    ----------
    cell : Cell
    run : dict
        The run config, as Flower has it.
    sites : dict of str to str
        Folder of each site's data set, in order of name.
    folder : str
        The cell's own folder.
    records : str
        Folder above the sites' own records.
    centralized_batch : {"large", "small"}
    local : list of str
        Sites that train by themselves.
    models : dict of str to str
        Folders of models that earlier cells of the seed have made.
    cpus, gpus : int, float
        What the cell may use.
    timeout : float
        Seconds after which it is ended.
    in_place : bool
        A federation trains site after site in the cell's own process, without messages.
    membership : bool
        Whether its released models are attacked by the loss.
    """

    cell: Cell
    run: dict[str, bool | int | float | str]
    sites: dict[str, str]
    folder: str
    records: str
    centralized_batch: str
    local: list[str]
    models: dict[str, str]
    cpus: int
    gpus: float
    timeout: float
    in_place: bool = False
    membership: bool = False

    @property
    def config(self) -> RunConfig:
        """The run config, validated."""
        return read_run_config(self.run)
