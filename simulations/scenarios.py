"""Every strategy of a comparison also under each of some scenarios, as variants of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from common.strategies.strategy import strategy_names
from simulations.contrasts import reference_of


def crossed(
    strategies: Sequence[str],
    variants: Mapping[str, Mapping[str, Any]],
    scenarios: Mapping[str, Mapping[str, Any]],
    contrasts: Sequence[Sequence[str]],
) -> dict[str, Any]:
    """Return a comparison's strategies, variants and contrasts, with those under scenarios.

    Parameters
    ----------
    strategies : sequence of str
    variants : mapping of str to mapping
    scenarios : mapping of str to mapping
        Run-config values by name. ``STRATEGY-SCENARIO`` is a strategy or variant with these.
    contrasts : sequence of pairs
        Where there are scenarios and none are given: what a scenario costs each strategy, and how
        far each is from the reference, without and under each scenario.
    """
    if not scenarios:
        return {}
    names = {
        f"{one}-{scenario}": (one, scenario)
        for one in [*strategy_names(), *variants]
        for scenario in scenarios
    }
    plain = [one for one in strategies if one not in names]
    compared = dict.fromkeys([*strategies, *(name for name in names if names[name][0] in plain)])
    made, pairs, reference = {}, [], reference_of(plain)
    for name in (one for one in compared if one in names):
        strategy, scenario = names[name]
        own = variants.get(strategy, {"strategy.name": strategy})
        made[name] = {**own, **scenarios[scenario]}
        pairs += [[name, strategy], [name, f"{reference}-{scenario}"]]
    pairs += [[strategy, reference] for strategy in plain]
    return {
        "strategies": list(compared),
        "variants": {**variants, **made},
        "contrasts": list(contrasts) or [pair for pair in pairs if len({*pair} & {*compared}) == 2],
    }
