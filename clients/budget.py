"""A site's budget of differential privacy: what its runs have promised, over its data's life.

Every run tells a little more of the same people. With basic composition (Dwork and Roth 2014, *The
Algorithmic Foundations of Differential Privacy*, theorem 3.16) runs of (ε_k, δ_k) are together
(Σ ε_k, Σ δ_k)-differentially private, whatever they train and however a later one depends on an
earlier one. Tighter sums need the same accountant for all runs; this one can be checked by hand.

The sums are in ``RECORDS/SITE/budget.toml``, a table a run. The budget is the site's policy:
``max-epsilon`` and ``max-delta``. A run pays for all of its rounds before the first, once, also if
it is interrupted; it gets nothing back if it ends early. Whoever replaces a site's data by other
people's may move the file away.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from clients.digests import public_errors
from common.errors import ConfigError, FedscanError
from common.files import make_folder, write_atomically
from common.paths import site_records
from common.reading import parse_toml

if TYPE_CHECKING:
    from common.privacy.guarantee import Guarantee

NAME = "budget.toml"
ABOUT = "its record of privacy budgets"
HEAD = "# What runs may tell of a person, in the order of their beginnings: docs/privacy.md\n"
ROUNDING = 1e-9  # of a sum, relative
SECONDS = 30.0  # to wait for another process that writes


@dataclass(frozen=True)
class Spent:
    """What a run has reserved."""

    run: str
    epsilon: float
    delta: float


@dataclass(frozen=True)
class Budget:
    """The budget of one site.

    Parameters
    ----------
    site : str
    epsilon, delta : float
        That all runs together may spend; infinite: any.
    """

    site: str
    epsilon: float = math.inf
    delta: float = math.inf

    @property
    def path(self) -> Path:
        """The file."""
        return site_records(self.site) / NAME

    def spent(self) -> list[Spent]:
        """Read what runs have reserved so far.

        Raises
        ------
        FedscanError
            The file is damaged or cannot be read: nothing is granted then.
        """
        with public_errors(self.site, f"{ABOUT} cannot be read"):
            try:
                text = self.path.read_text(encoding="utf-8")
            except FileNotFoundError:
                return []
            except UnicodeDecodeError:
                text = "="
        try:
            return [_checked(**row) for row in parse_toml(text).get("run", [])]
        except (ValueError, TypeError) as error:
            message = f"site '{self.site}': {ABOUT} is damaged"
            way_out = "Restore it from a copy: without it nobody knows what is left"
            raise FedscanError(
                f"{message} ({self.path}). {way_out}", public=f"{message}. {way_out}"
            ) from error

    def require(self, run: str, asked: Guarantee) -> list[Spent]:
        """Refuse a run that asks for more than is left; return what all have reserved, with it.

        Raises
        ------
        ConfigError
            Its public words hold sums of what run configurations ask for, nothing of people.
        FedscanError
            See :meth:`spent`.
        """
        spent = self.spent()
        wanted = Spent(run, asked.epsilon, asked.delta)
        if (known := next((one for one in spent if one.run == run), None)) is not None:
            if known != wanted:
                raise ConfigError(
                    f"site '{self.site}': run {run} has begun with another privacy.epsilon or "
                    "privacy.delta: start another run"
                )
            return spent
        for what, total in (("epsilon", self.epsilon), ("delta", self.delta)):
            before = math.fsum(getattr(one, what) for one in spent)
            if before + getattr(wanted, what) > total * (1 + ROUNDING):
                raise ConfigError(
                    f"site '{self.site}': the run asks for {what} = {getattr(wanted, what):.3g}, "
                    f"and of {total:.3g} that the site grants (max-{what}) {before:.3g} is spent "
                    f"by earlier runs: lower privacy.{what}, or ask the site to change its policy"
                )
        return [*spent, wanted]

    def reserve(self, run: str, asked: Guarantee) -> None:
        """Write down what a run may spend, unless it is there already.

        Raises
        ------
        ConfigError
            See :meth:`require`.
        FedscanError
            The file is damaged, cannot be read or written, or is held by another process.
        """
        with public_errors(self.site, f"{ABOUT} cannot be written"):
            make_folder(self.path.parent)
            try:
                with FileLock(self.path.with_name(f".{NAME}.lock"), timeout=SECONDS):
                    rows = self.require(run, asked)
                    write_atomically(self.path, (HEAD + "".join(map(_table, rows))).encode())
            except Timeout as error:
                raise FedscanError(
                    f"site '{self.site}': {ABOUT} is held by another process: try again"
                ) from error


def _table(one: Spent) -> str:
    run = json.dumps(one.run)  # a run's id has letters, digits and -
    return f"\n[[run]]\nrun = {run}\nepsilon = {one.epsilon!r}\ndelta = {one.delta!r}\n"


def _checked(run: Any, epsilon: Any, delta: Any) -> Spent:
    """Make a row of what a file holds; negative sums would give something back."""
    one = Spent(str(run), float(epsilon), float(delta))
    if not (one.epsilon >= 0 and one.delta >= 0):
        raise ValueError("negative, or no number")
    return one
