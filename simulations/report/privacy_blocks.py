"""What a report says of privacy: promises, accuracy against ε, and results of attacks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from common.metrics_log import WHOLE
from simulations.measures import MEMBERSHIP, measure
from simulations.report.blocks import Block, Section
from simulations.report.ledger import (
    ATTACKS,
    PROMISES,
    about_whom,
    budgets,
    promises,
    protection,
    result,
    short,
    told,
    unit_of,
    weaknesses,
)
from simulations.report.looks import Series
from simulations.report.pictures import Trained
from simulations.report.tables import Cell, Head, Table, estimate, grouped, key_of
from simulations.report.words import mapping, place, sentence

BUDGETS = (
    *(Head("Site", n=False), Head("Unit", n=False)),
    *map(Head, ("ε of the run", "ε spent", "δ", "Noise multiplier", "Clipping norm")),
)
LEADING = ("balanced_accuracy", "auroc")
CAVEAT = (
    "AUROC of membership: 0.5 is guessing. An interval that holds it is no proof of privacy: a "
    "stronger attack may exist. What a promise means: docs/privacy.md; attacks: docs/attacks.md."
)


class Compared(Protocol):
    """What is asked of a comparison: see :class:`simulations.report.content.Content`."""

    summary: dict[str, Any]
    scores: dict[str, dict[str, Mapping[str, Any]]]
    models: list[Trained]
    described: dict[str, Mapping[str, Any]]
    poor: str
    means: str
    small: str

    def looks(self, where: str) -> dict[str, Series]:
        """Return the models of a place."""

    @property
    def all_looks(self) -> dict[str, Series]:
        """Return every model."""


def of_comparison(content: Compared) -> Iterator[Section]:
    """Yield the section of a comparison in which anything was promised or attacked."""
    of_models = {key: mapping(content.summary.get(key)) for key in PROMISES}
    promised = {
        model: promises({key: some.get(model) for key, some in of_models.items()})
        for model in dict.fromkeys(model for some in of_models.values() for model in some)
    }
    attacks = {
        f"{content.all_looks[name].name}, seed {one.seed}": found
        for one in content.models
        for name, about in content.described.items()
        if (found := one.summary.get(ATTACKS)) and isinstance(found, list)
        if all(about.get(k) == getattr(one, k) for k in ("arm", "strategy", "trained_on"))
    }
    if not promised and not attacks:
        return
    blocks: list[Block] = []
    if promised:
        given = [one for some in promised.values() for one in some]
        blocks.append(("text", " ".join([*weaknesses(given), CAVEAT])))
        blocks.append(("table", _cost(content, promised)))
        blocks.append(("table", _promised(content, promised)))
    if MEMBERSHIP in (content.summary.get("measures") or ()):  # the loss's means are above
        attacks = {m: [a for a in some if a.get("method") != "loss"] for m, some in attacks.items()}
    if shown := attacks_table({m: some for m, some in attacks.items() if some}):
        blocks.append(("table", shown))
    yield Section("privacy", "Privacy", "What differential privacy costs", blocks)


def of_run(summary: Mapping[str, Any]) -> Iterator[Section]:
    """Yield the section of a run in which anything was promised or attacked."""
    given, attacks = promises(summary), summary.get(ATTACKS)
    blocks: list[Block] = [("text", one) for one in map(protection, given)]
    blocks += [("text", line) for line in weaknesses(given)]
    if rows := _budgets(given):
        blocks.append(("table", Table("Budgets", "Of this run.", BUDGETS, [rows])))
    if isinstance(attacks, list) and (shown := attacks_table({"": attacks})):
        blocks += [("table", shown), ("text", CAVEAT)]
    if blocks:
        yield Section("privacy", "Privacy", "", blocks)


def attacks_table(attacks: Mapping[str, list[Mapping[str, Any]]]) -> Table | None:
    """Return the results of attacks on each model, which may have no name; None without any."""
    groups = {
        name: [
            _row(
                Cell(f"{one.get('kind')}, {one.get('method')}", kind="", scope="row"),
                *(str(one.get("site")), about_whom(one), " ".join(result(one))),
            )
            for one in told([*map(mapping, some)])
        ]
        for name, some in attacks.items()
    }
    if not any(groups.values()):
        return None
    heads = [Head("Attack", n=False), Head("Site"), Head("Of"), Head("Result (95 % interval)")]
    named = len(groups) > 1 or "" not in groups
    rows = grouped(groups) if named else list(groups.values())
    heads = [Head("Model", n=False), *heads] if named else heads
    return Table("Attacks", "As fedscan attack has measured them.", heads, rows)


def _cost(content: Compared, promised: Mapping[str, list[Mapping[str, Any]]]) -> Table:
    """Measures of every model against its ε: of all sites, and at the data-poor one."""
    places = [where for where in (WHOLE, content.poor) if where in content.scores]
    names = [m for m in (*LEADING, MEMBERSHIP) if m in (content.summary.get("measures") or ())]
    groups: dict[str, list[list[Cell]]] = {}
    for where in places:
        here = content.scores[where]
        models = [m for m in content.looks(where) if m in here]
        # Of each arm from no promise to the strictest.
        models.sort(key=lambda m: (m.partition("/")[0], -_epsilon(promised.get(m, []))))
        groups[place(where)] = [
            [
                key_of(content.all_looks[m]),
                Cell(", ".join(map(_worded, promised.get(m, []))) or "none"),
                *(estimate(name, here[m].get(name)) for name in names),
            ]
            for m in models
        ]
    heads = [Head("Tested at", n=False), Head("Model", n=False), Head("ε")]
    heads += [Head(sentence(measure(name).words)) for name in names]
    caption = f"{sentence(content.means)}; {content.small}. AUROC of membership: the loss of the "
    caption += "released model, of people in training against test people of the same site."
    return Table("Accuracy and membership against ε", caption, heads, grouped(groups))


def _promised(content: Compared, promised: Mapping[str, list[Mapping[str, Any]]]) -> Table:
    groups = {_name(content, model): _budgets(some) for model, some in promised.items()}
    heads = [Head("Model", n=False), *BUDGETS]
    return Table("Budgets", "Of the first repetition.", heads, grouped(groups))


def _budgets(given: list[Mapping[str, Any]]) -> list[list[Cell]]:
    """Rows of :data:`BUDGETS`."""
    return [
        _row(
            Cell(site, kind="", scope="row"),
            *(unit_of(one), short(one.get("epsilon")), *numbers, short(one.get("max_norm"))),
        )
        for one in given
        for site, *numbers in budgets(one)
    ]


def _worded(promise: Mapping[str, Any]) -> str:
    """Say ε, and of whom where it is not of people."""
    words = short(promise.get("epsilon"))
    return words if unit_of(promise) == "person" else f"{words} ({unit_of(promise)})"


def _name(content: Compared, model: str) -> str:
    look: Series | None = content.all_looks.get(model)
    return look.name if look else model


def _epsilon(given: list[Mapping[str, Any]]) -> float:
    return min((float(one["epsilon"]) for one in given), default=float("inf"))


def _row(first: Cell, *texts: str) -> list[Cell]:
    return [first, *map(Cell, texts)]
