"""The main numbers of a comparison, as cards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import pandas as pd

from simulations.contrasts import QUESTIONS
from simulations.measures import measure
from simulations.report import tables
from simulations.report.looks import look_of
from simulations.report.words import Nouns, is_number, mapping, whole

GAIN = "gain_of_data_poor_site"
OTHERS = {GAIN: "local", "loss_against_pooling": "centralized"}


class Compared(Protocol):
    """What is asked of a comparison: see :class:`simulations.report.content.Content`."""

    summary: dict[str, Any]
    results: pd.DataFrame
    counts: dict[str, Mapping[str, Any]]
    nouns: Nouns
    poor: str
    level: str
    times: str

    def share(self) -> float | None:
        """Of the plain messages' bytes, what the reference strategy has sent."""


def of_comparison(content: Compared) -> Iterator[dict[str, str]]:
    """Yield a comparison's main differences, its bytes and its repetitions."""
    headline, arms = mapping(content.summary.get("headline")), set(content.results["arm"])
    for key, other in OTHERS.items():
        found = mapping(headline.get(key))
        if not is_number(found.get("value")) or not QUESTIONS[key] <= arms:
            continue
        name = str(found.get("metric"))
        # As in figures and tables: the federated arm minus the other one.
        turned = (key == GAIN) == measure(name).less_is_better
        value, *ends = (found.get(k) for k in ("value", "low", "high"))
        if turned:
            value, ends = -value, [-e if is_number(e) else e for e in reversed(ends)]
        better = "below" if measure(name).less_is_better else "above"
        note = f"{measure(name).words}{_of_reference(content)}; {better} zero: federation is "
        note += "better"
        if all(map(is_number, ends)):
            low, high = (tables.told(name, end, signed=True) for end in ends)
            zero = "excludes" if found.get("excludes_zero") else "includes"
            note += f"; {content.level} interval {low} to {high}, {zero} zero"
        else:
            note += "; no interval"
        where = content.poor if key == GAIN else "all sites"
        yield {
            "name": f"{tables.contrast_name(f'federated - {other}')}, {where}",
            "value": tables.told(name, value, signed=True),
            "note": note,
        }
    if (share := content.share()) is not None:
        yield {
            "name": "Bytes of the federation",
            "value": f"{100 * share:.0f} %",
            "note": "of what G, D and G's average as float32, both ways, every round, would "
            "have taken",
        }
    tested = [whole(n.get("n_test")) for n in content.counts.values()]
    yield {
        "name": "Repetitions",
        "value": content.times.removesuffix("s").removesuffix(" repetition"),
        "note": f"test {content.nouns.images} a site: {', '.join(tested)}" if tested else "",
    }


def _of_reference(content: Compared) -> str:
    """Say which strategy stands for the federated arm, where there are several."""
    rows = content.results[content.results["arm"] == "federated"]
    reference = content.summary.get("reference_strategy")
    if not reference or rows["strategy"].nunique() < 2:
        return ""
    return f" of {look_of({'arm': 'federated', 'strategy': reference}).name}"
