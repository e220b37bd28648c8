"""How models are drawn: one colour, marker and dash each, distinct also in grey."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import cycle, product
from typing import Any

import pandas as pd

from common.strategies.strategy import strategy_names

# Okabe and Ito's palette, distinct for colour-blind eyes (https://jfly.uni-koeln.de/color/).
OKABE_ITO = {
    "black": "#000000",
    "orange": "#e69f00",
    "sky blue": "#56b4e9",
    "green": "#009e73",
    "yellow": "#f0e442",
    "blue": "#0072b2",
    "vermilion": "#d55e00",
    "purple": "#cc79a7",
}
# Darker ones for thin lines and text on white; the page's style names them too.
COLOURS = {
    "centralized": "#007a5a",
    "local": "#c05000",
    "fedavg": "#0067a8",
    "fedprox": "#a3478a",
    "other": "#6b7480",
}
DASHES = {
    dash: tuple(map(int, dash.split())) for dash in ("", "2 3", "7 3", "9 2", "3 2", "8 3 2 3")
}


@dataclass(frozen=True)
class Series:
    """One model of a comparison, and how it is drawn.

    Parameters
    ----------
    colour : str
        Its name in :data:`COLOURS`.
    marker : str
        As Matplotlib names it.
    dash : str
        Lengths of dash and gap.
    """

    arm: str
    strategy: str
    label: str
    note: str
    colour: str
    marker: str
    dash: str

    @property
    def name(self) -> str:
        """Label and note in one line."""
        return f"{self.label} ({self.note})" if self.note else self.label


_LOOKS = {
    ("centralized", ""): ("Centralized", "", "centralized", "s", "2 3"),
    ("local", ""): ("Local only", "", "local", "^", "7 3"),
    ("federated", "fedavg"): ("Federated", "FedAvg", "fedavg", "o", ""),
    ("federated", "fedprox"): ("Federated", "FedProx", "fedprox", "D", "9 2"),
    # Variants of presets, under their own names.
    **{
        ("centralized", name): ("Centralized", name, "centralized", marker, dash)
        for name, marker, dash in (
            ("unconditional", "p", ""),
            ("only-positive", "h", "2 3"),
            ("only-other", "d", "9 2"),
        )
    },
    **{
        ("federated", name): ("Federated", note, colour, marker, dash)
        for name, note, colour, marker, dash in (
            ("gan-frozen", "GAN, frozen", "fedavg", "s", "3 2"),
            ("untrained-frozen", "untrained, frozen", "fedprox", "^", "3 2"),
            ("scratch", "from scratch", "other", "o", "7 3"),
            ("unconditional", "unconditional", "fedavg", "s", "3 2"),
            ("by-label", "by-label", "fedavg", "^", "3 2"),
            ("by-site", "by-site", "fedavg", "D", "3 2"),
            ("private-discriminators", "private-discriminators", "fedprox", "o", "7 3"),
            ("votes-by-images", "votes-by-images", "fedprox", "s", "7 3"),
            ("plain-average", "plain-average", "other", "s", ""),
            ("int8", "int8", "other", "^", ""),
            ("float16", "float16", "other", "D", ""),
        )
    },
}
# Every other strategy, and the variants of presets that have many: markers that nothing above has.
_VARIANTS = (
    *("threshold", "statistics", "harmonized", "source-only", "with-labels"),
    *("fedavg-epochs", "fednova-epochs"),
    *("trimmed", "krum-of-three", "multikrum-of-three", "bulyan-of-three"),
    *("only-positive", "only-other"),
)
_OTHERS = [name for name in strategy_names() if ("federated", name) not in _LOOKS]
# And those of presets whose strategies are crossed with scenarios.
_ROBUST = ("fedavg", "fedmedian", "fedtrimmedavg", "krum", "multikrum", "bulyan-f1")
_CROSSED = (
    *(f"{name}-{one}" for one in ("sign-flip", "scaled-noise", "label-flip") for name in _ROBUST),
    *(f"fedavg-{one}" for one in ("dropout", "late", "slow", "label-noise", "scanner-change")),
    "bulyan-f1",
)
_PRIVATE = ("no-noise", *(f"epsilon-{one}" for one in (16, 8, 4, 2, 1)))
_LOOKS |= {
    (arm, name): (label, name, colour, marker, dash)
    for arm, label, colour, marker in (
        ("federated", "Federated", "fedavg", "."),
        ("local", "Local only", "local", "H"),
    )
    for name, dash in zip(_PRIVATE, DASHES, strict=True)
}
_LOOKS |= {
    ("federated", name): ("Federated", name, colour, marker, dash)
    for names, markers in (((*_OTHERS, *_VARIANTS), "vPX*<>"), (_CROSSED, "ph8d"))
    for name, (dash, marker), colour in zip(
        names, product(DASHES, markers), cycle(("fedavg", "other", "fedprox")), strict=False
    )
}
_PLACES = {key: place for place, key in enumerate(_LOOKS)}


def series(arm: str, strategy: str) -> Series:
    """Return how an arm is drawn; one that is not known here is grey and keeps its own name."""
    plain = (arm.capitalize(), strategy, "other", "o", "3 2")
    return Series(arm, strategy, *_LOOKS.get((arm, strategy), plain))


def series_of(table: pd.DataFrame) -> list[Series]:
    """Arms and strategies that occur in a table, in the order in which they are always shown."""
    present = set(zip(table["arm"], table["strategy"], strict=True))
    return [series(*key) for key in sorted(present, key=_place)]


def in_order(models: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the names of a summary's models in the order of :func:`series_of`."""
    keys = {
        name: (str(model.get("arm", "")), str(model.get("strategy", "")))
        for name, model in models.items()
    }
    return sorted(keys, key=lambda name: _place(keys[name]))


def _place(key: tuple[str, str]) -> tuple[int, tuple[str, str]]:
    return _PLACES.get(key, len(_PLACES)), key


def look_of(model: Mapping[str, Any]) -> Series:
    """Return how a summary's model is drawn; another site's own model says whose it is."""
    arm, strategy, trained_on = (str(model.get(k, "")) for k in ("arm", "strategy", "trained_on"))
    found = series(arm, strategy)
    if arm != "local" or not trained_on:
        return found
    return replace(found, note=", ".join(filter(None, (found.note, f"of {trained_on}"))))
