"""The released models of a comparison's cell, attacked by the loss when they are tested."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from simulations.attack.members import released
from simulations.ledger import keep
from simulations.measures import MEMBERSHIP
from simulations.trained import read_trained

if TYPE_CHECKING:
    from simulations.work import Work


def with_attacks(work: Work, rows: pd.DataFrame) -> pd.DataFrame:
    """Attack the models of a cell; add what comes of it to their summaries and to the results.

    Parameters
    ----------
    work : Work
    rows : DataFrame
        Results of the cell.

    Returns
    -------
    DataFrame
        With a row more for each model and site on whose people it was trained: the AUROC by which
        the loss tells people in training from others. None of sites with fewer than 5 of either.
    """
    tests = rows[(rows["split"] == "test") & (rows["status"] == "done")]
    more = []
    for name, row in tests.drop_duplicates("trained_on").set_index("trained_on").iterrows():
        trained = read_trained(Path(work.folder) / str(name), device=work.config.run.device)
        attacks = released(trained, trained.training_sites, seed=work.cell.seed)
        keep(trained.folder, attacks)
        for one in attacks:
            people, found = one["persons"], one["auc"]["mean"]
            if one["site"] in work.sites and found is not None:
                about = {"trained_on": name, "tested_on": one["site"], "metric": MEMBERSHIP}
                more.append({**row, **about, "value": found, "n": people["in"] + people["out"]})
    return pd.concat([rows, pd.DataFrame(more, columns=rows.columns)]) if more else rows
