"""Which keys of a run config are options of which strategies."""

from __future__ import annotations

from collections.abc import Sequence

from common.extensions import is_extension
from common.strategies.strategy import load_strategy, strategy_names


def options_of(strategy: str) -> list[str]:
    """Return the keys of a strategy's own options."""
    options = load_strategy(strategy).Options
    return [f"{options.prefix}{key}" for key in options().to_mapping()]


def own_options(named: Sequence[str] = ()) -> dict[str, list[str]]:
    """Return the keys that are not every strategy's, with the strategies that have them.

    Those of other packages are among them where they are named.
    """
    found: dict[str, list[str]] = {}
    for strategy in (*strategy_names(), *filter(is_extension, named)):
        for key in options_of(strategy):
            found.setdefault(key, []).append(strategy)
    return found
