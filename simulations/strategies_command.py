"""``fedscan strategies``: what there is to choose from, and what each can be told."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from simulations.options import Format, FormatOption

if TYPE_CHECKING:
    from common.strategies.strategy import Strategy


def strategies(
    name: Annotated[
        str | None, typer.Argument(help="One of them: also its equation and paper.")
    ] = None,
    output_format: FormatOption = Format.text,
) -> None:
    """List the ways in which sites can learn together; of one of them, tell its options as well.

    For example:

    - `fedscan strategies`
    - `fedscan strategies fedadam`
    - `fedscan strategies --format json`
    """
    from common.strategies.strategy import load_strategy, strategy_names

    found = [load_strategy(name)] if name else [load_strategy(one) for one in strategy_names()]
    told = [about(one) for one in found]
    if output_format is Format.json:
        typer.echo(json.dumps(told[0] if name else told))
        return
    from simulations.console import out

    if name:
        listed = list(lines(told[0]))
    else:
        width = max(len(one["name"]) for one in told)
        listed = [f"{one['name']:{width}}  {one['summary']}" for one in told]
        listed.append("\nfedscan strategies NAME: options, equation and paper of one of them")
    for line in listed:
        out.print(line, markup=False, soft_wrap=True)


def about(strategy: Strategy) -> dict[str, Any]:
    """Return what can be said of a strategy."""
    from common.config.run_config import RunConfig

    options = strategy.Options
    return {
        "name": strategy.name,
        "summary": strategy.summary,
        "personal": strategy.is_personal,
        "generation": not strategy.of_classifiers,
        "secure-sums": strategy.secure_sums,
        "differential-privacy": strategy.private,
        "server-learning-rate": strategy.takes_server_rate,
        "sites-needed": strategy.sites_needed(RunConfig()),
        "options": [
            {
                "key": options.prefix + key,
                "default": value,
                "accepted": options.accepted_values(key),
            }
            for key, value in options().to_mapping().items()
        ],
        "about": (sys.modules[type(strategy).__module__].__doc__ or "").strip(),
    }


def lines(told: dict[str, Any]) -> Iterator[str]:
    """Say all of it in words."""
    from common.settings import as_words

    yield f"{told['name']}: {told['summary']}"
    can = [
        "a model for each site" if told["personal"] else "one model for all",
        "classification and generation" if told["generation"] else "classification only",
        *["the server needs only sums"] * told["secure-sums"],
        *["differential privacy"] * told["differential-privacy"],
        *["server learning rate"] * told["server-learning-rate"],
        f"needs {told['sites-needed']} sites" if told["sites-needed"] > 1 else "any sites",
    ]
    yield f"    {', '.join(can)}"
    for option in told["options"]:
        yield f"    {as_words({option['key']: option['default']})}: {option['accepted']}"
    yield f"\n{told['about']}"
