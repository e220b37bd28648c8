"""What a model card says of privacy: the promise of the run, and what attacks have found."""

from __future__ import annotations

from simulations.model_card import Facts
from simulations.model_card_markup import code, table
from simulations.report.ledger import (
    ATTACKS,
    NO_PRIVACY,
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
from simulations.report.words import mapping

CAVEAT = (
    "An interval that holds 0.5, the AUROC of guessing, is no proof of privacy: its upper end says "
    "what would have gone unseen, and a stronger attack may exist."
)


def of_privacy(facts: Facts) -> list[str]:
    """Return the lines of the section."""
    given = promises(facts.summary)
    lines = [*map(protection, given), *weaknesses(given)] or [f"{NO_PRIVACY}."]
    if rows := [
        [unit_of(one), code(site), *numbers, short(one.get("max_norm"))]
        for one in given
        for site, *numbers in budgets(one)
    ]:
        heads = ["unit", "site", "ε spent", "δ", "noise multiplier", "clipping norm"]
        lines = [*lines, "", *table(heads, rows)]
    attacks = facts.summary.get(ATTACKS)
    attacks = told([*map(mapping, attacks)]) if isinstance(attacks, list) else []
    rows = [
        [code(f"{one.get('kind')}, {one.get('method')}"), code(one.get("site")), *texts]
        for one in attacks
        for texts in [(code(about_whom(one)), " ".join(result(one)))]
    ]
    if not rows:
        return [*lines, "", "No attack on it was measured (`fedscan attack`)."]
    heads = ["attack", "site", "of", "result (95 % CI)"]
    return [*lines, "", *table(heads, rows), "", CAVEAT]
