"""The group ``trouble``: what a simulation makes go wrong at its sites, by default nothing.

What each key does is computed in :mod:`common.trouble`.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, field_validator

from common.config.groups import Group, sorted_names
from common.settings import Fraction, NonNegative
from common.site_names import SITE_NAME

_NAMES = {"accepted": "names of sites with blanks between them, or nothing"}
_PAIRS = {
    "accepted": "pairs SITE:ROUND with blanks between them, as in 'north:5 south:8', each site "
    "once, rounds from 1 on, or nothing"
}


class Trouble(Group):
    """What goes wrong at simulated sites."""

    prefix: ClassVar[str] = "trouble."

    dropout: float = Field(0.0, ge=0, lt=1, description="chance that a site is away in a round")
    late: str = Field(
        "",
        description="the round in which a site joins, as in 'north:5'; before, it is away",
        json_schema_extra=_PAIRS,
    )
    slow: str = Field(
        "", description="names of sites that begin each round late", json_schema_extra=_NAMES
    )
    delay: NonNegative = Field(
        0.0, le=86_400, description="seconds that slow sites wait before they train"
    )
    label_noise: Fraction = Field(
        0.0,
        description="classification: chance that a training label is replaced by another class",
    )
    scanner_change: str = Field(
        "",
        description="the round from which on a site's training images look as if from another "
        "scanner, as in 'north:5'",
        json_schema_extra=_PAIRS,
    )
    attack: Literal["none", "sign-flip", "scaled-noise", "label-flip"] = Field(
        "none",
        description="sign-flip: attackers send their update with the opposite sign; scaled-noise: "
        "Gaussian noise; label-flip: they train on the opposite classes",
    )
    attackers: str = Field(
        "",
        description="names of sites that attack; honest without an attack",
        json_schema_extra=_NAMES,
    )
    attack_scale: NonNegative = Field(
        1.0,
        le=1e6,
        description="sign-flip and scaled-noise: length of what is sent, in lengths of the "
        "attacker's own update",
    )

    _names = field_validator("slow", "attackers")(sorted_names)

    @field_validator("late", "scanner_change")
    @classmethod
    def _sorted_pairs(cls, value: str) -> str:
        return " ".join(f"{site}:{number}" for site, number in sorted(_rounds(value).items()))

    @property
    def is_on(self) -> bool:
        """Whether anything goes wrong."""
        calm = {"attackers": self.attackers, "attack_scale": self.attack_scale}
        return self != Trouble(**calm)

    @property
    def joins(self) -> dict[str, int]:
        """The round in which each late site joins."""
        return _rounds(self.late)

    @property
    def rescanned(self) -> dict[str, int]:
        """The round from which on each site with another scanner has it."""
        return _rounds(self.scanner_change)

    @property
    def sites(self) -> set[str]:
        """All sites that are named."""
        return {*self.slow.split(), *self.attackers.split(), *self.joins, *self.rescanned}

    def faults(self, task: str) -> list[str]:
        """Say which values have no effect, or none without others."""
        found = []
        if bool(self.slow) != bool(self.delay):
            found.append(
                "trouble.slow and trouble.delay have an effect together: set both or none of them"
            )
        if self.attack != "none" and not self.attackers:
            found.append(
                f"trouble.attack = '{self.attack}' needs trouble.attackers, names of sites"
            )
        if self.attack_scale != 1 and self.attack not in ("sign-flip", "scaled-noise"):
            found.append(
                "trouble.attack-scale has an effect with trouble.attack = 'sign-flip' or "
                "'scaled-noise' alone: leave it out"
            )
        if self.attack == "label-flip" and task != "classification":
            found.append(
                "trouble.attack = 'label-flip' is for task 'classification': choose another attack"
            )
        return found


def _rounds(pairs: str) -> dict[str, int]:
    """Read rounds by site from pairs SITE:ROUND.

    Raises
    ------
    ValueError
        A pair is not understood, or a site stands twice.
    """
    found: dict[str, int] = {}
    for pair in pairs.split():
        site, _, number = pair.partition(":")
        usable = SITE_NAME.fullmatch(site) and number.isdecimal() and int(number) > 0
        if not usable or site in found:
            raise ValueError(pair)  # put into words by accepted_values
        found[site] = int(number)
    return found
