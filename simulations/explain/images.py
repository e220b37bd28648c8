"""Images of a site whose label is known."""

from __future__ import annotations

from typing import TYPE_CHECKING

from common.data.site_data import read_table
from common.data.unlabelled import UnlabelledError

if TYPE_CHECKING:
    from common.data.dataset import Dataset
    from simulations.trained import Trained


def known_images(trained: Trained, site: str, split: str) -> Dataset | None:
    """Open the images of a split whose label is known; None where a site has none.

    Raises
    ------
    ConfigError, DataContractError
        The run has no such site, or its data cannot be read.
    """
    if site in trained.folders:
        table = read_table(trained.study, site, trained.folders[site])
        if not len(table.rows(split)):
            return None
    try:
        data = trained.open(site, split).labelled()
    except UnlabelledError:
        return None
    return data if len(data) else None
