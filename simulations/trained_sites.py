"""Which sites of a trained model are looked into, and which of their splits have images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from common.errors import ConfigError

if TYPE_CHECKING:
    from common.data.dataset import Dataset
    from simulations.trained import Trained


def chosen_sites(asked: Sequence[str], known: Sequence[str], which: str = "") -> tuple[str, ...]:
    """Return the sites that ``--site`` names, once each, or all where it names none.

    Raises
    ------
    ConfigError
        One is not among those known; ``which`` says what these are.
    """
    if unknown := [site for site in asked if site not in known]:
        raise ConfigError(f"--site {unknown[0]}: accepted is one of {', '.join(known)}{which}")
    return tuple(dict.fromkeys(asked or known))


def open_if_any(trained: Trained, site: str, split: str) -> Dataset | None:
    """Open a split of a site; None where no image of it can be judged by.

    Raises
    ------
    ConfigError, DataContractError
        As :meth:`Trained.open`.
    """
    from common.data.site_data import read_table
    from common.data.unlabelled import UnlabelledError

    if not len(read_table(trained.study, site, trained.folders[site]).rows(split)):
        return None
    try:
        return trained.open(site, split)
    except UnlabelledError:  # none of the run's classes
        return None
