"""What the gate knows of a site's people by its table, whatever an app says."""

from __future__ import annotations

from dataclasses import dataclass

from common.config.run_config import RunConfig
from common.data.image_table import NO_CLASS, ImageTable
from common.data.site_data import read_table
from common.imaging.splits import SPLITS
from common.sites import Site
from common.tasks.task import survey_table, use_of_labels


@dataclass(frozen=True)
class SplitFacts:
    """Of one split at most: images, people, people of the class with the fewest, and of each."""

    images: int
    people: int
    fewest: int
    classes: dict[str, int]


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
        used = use_of_labels(site.name, config).of(table)
        train = used.labels[used.rows("train")]
        return cls(counts, facts_of_splits(used, config), int((train != NO_CLASS).sum()))


def facts_of_splits(table: ImageTable, config: RunConfig) -> dict[str, SplitFacts]:
    """Count images and people of each split. Who is not named is told from others by the group."""
    found, names = {}, config.read_study().label.classes.names
    for split in SPLITS:
        people: dict[int, set[str]] = {}
        for row in table.rows(split):
            who = table.persons[row] or f"#{table.groups[row]}"
            people.setdefault(int(table.labels[row]), set()).add(who)
        everybody = len(set().union(*people.values()))
        of_classes = people.values() if config.task == "classification" else ()
        fewest = min(map(len, of_classes), default=everybody)
        of_each = {names[label]: len(who) for label, who in people.items() if label != NO_CLASS}
        found[split] = SplitFacts(len(table.rows(split)), everybody, fewest, of_each)
    return found
