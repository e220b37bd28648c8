"""Images without a label: which of a site's a run trains on, and whose labels it may not use."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from common.data.image_table import NO_CLASS, NO_LABEL, ImageTable
from common.errors import DataContractError


class UnlabelledError(DataContractError):
    """A site has no label to judge a model by; so it tells nothing, and nothing is wrong."""


def nothing_to_judge_by(split: str) -> str:
    """Say so of a split, as a site tells it."""
    return f"no image of split '{split}' has a label to judge by"


@dataclass(frozen=True)
class UseOfLabels:
    """What a run does at one site with images that have no label, and with labels.

    Parameters
    ----------
    keep : bool
        Images for training that have no label are kept, as some strategies learn from them; else
        they are left out.
    hide : bool
        Labels of images for training and validation are not used: the former are as if they had
        none, the latter are left out, since only labels are of use there. Which images are of which
        split is as it was, and so are the images for the test.
    """

    keep: bool = False
    hide: bool = False

    def of(self, table: ImageTable) -> ImageTable:
        """Return a site's table as the run may use it."""
        if self.keep and table.unlabelled is not None:
            table = _joined(table, table.unlabelled)
        if self.hide:
            table = _chosen(table, table.splits != "val")
            labels = np.where(table.splits == "train", NO_CLASS, table.labels)
            labels.setflags(write=False)
            table = replace(table, labels=labels)
        return table

    def judges(self, table: ImageTable) -> bool:
        """Tell whether a site must have images to judge models by.

        Not one that has no label to train on and need not: its owner may have no label at all.
        """
        learns = bool((table.labels[table.rows("train")] != NO_CLASS).any())
        return learns or not (self.keep or self.hide)


ALL = UseOfLabels()


def _joined(table: ImageTable, unlabelled: ImageTable) -> ImageTable:
    """Put the images without label behind the others."""
    both = (table, unlabelled)
    arrays = {
        name: np.concatenate([getattr(one, name) for one in both])
        for name in ("groups", "labels", "conditions", "splits")
    }
    left_out = {**table.left_out}
    left_out[NO_LABEL] = left_out.get(NO_LABEL, 0) - len(unlabelled)
    return replace(
        table,
        **arrays,
        files=table.files + unlabelled.files,
        persons=table.persons + unlabelled.persons,
        keys=table.keys + unlabelled.keys,
        without_person=table.without_person + unlabelled.without_person,
        left_out={why: count for why, count in left_out.items() if count > 0},
        unlabelled=None,
    )


def _chosen(table: ImageTable, mask: NDArray[np.bool_]) -> ImageTable:
    """Return some rows of a table."""
    rows = np.flatnonzero(mask)
    arrays = {
        name: getattr(table, name)[rows] for name in ("groups", "labels", "conditions", "splits")
    }
    texts = {
        name: tuple(getattr(table, name)[row] for row in rows)
        for name in ("files", "persons", "keys")
        if getattr(table, name)
    }
    return replace(table, **arrays, **texts)
