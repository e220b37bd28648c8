"""What the gate knows of a site's people by its table, whatever an app says."""

from __future__ import annotations

from dataclasses import dataclass

from common.config.run_config import RunConfig
from common.data.site_data import read_table
from common.imaging.splits import SPLITS
from common.sites import Site
from common.tasks.task import survey_table, use_of_labels


@dataclass(frozen=True)
class SplitFacts:
    """Of one split at most: images, people, and people of the class with the fewest."""

    images: int
    people: int
    fewest: int


@dataclass(frozen=True)
class SiteFacts:
    """What a site's table holds under a run's study.

    Parameters
    ----------
    counts : dict of str to int
        Files of each split and those left out, as a run's first message tells them.
    splits : dict of str to SplitFacts
    labelled : int
        Training images with a label.
    """

    counts: dict[str, int]
    splits: dict[str, SplitFacts]
    labelled: int

    @classmethod
    def of(cls, site: Site, config: RunConfig) -> SiteFacts:
        """Read a site's table; no image is opened.

        Raises
        ------
        DataContractError
            If it cannot be used in the run.
        """
        table = read_table(config.read_study(), site.name, site.data_dir)
        counts = survey_table(table, config)
        table = use_of_labels(site.name, config).of(table)
        splits = {}
        for split in SPLITS:
            rows = table.rows(split)
            people: dict[int, set[str]] = {}
            for row in rows:
                people.setdefault(int(table.labels[row]), set()).add(
                    table.persons[row] or f"#{table.groups[row]}"
                )
            splits[split] = SplitFacts(
                len(rows),
                len(set().union(*people.values())),
                min(map(len, people.values()), default=0),
            )
        train = table.labels[table.rows("train")]
        return cls(counts, splits, int((train >= 0).sum()))
