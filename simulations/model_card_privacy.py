"""What a model card says of privacy: the promise of the run, and what attacks have found."""

from __future__ import annotations

from simulations.model_card import Facts
from simulations.model_card_markup import code, table
from simulations.report.ledger import (
    ATTACKS,
    NO_PRIVACY,
    about_whom,
    budgets,
    promise,
    result,
    told,
)
from simulations.report.words import mapping

CAVEAT = (
    "An interval that holds 0.5, the AUROC of guessing, is no proof of privacy: its upper end says "
    "what would have gone unseen, and a stronger attack may exist."
)


def of_privacy(facts: Facts) -> list[str]:
    """Return the lines of the section."""
    privacy = mapping(facts.summary.get("privacy"))
    lines = promise(privacy) or [f"{NO_PRIVACY}."]
    if rows := [[code(site), *numbers] for site, *numbers in budgets(privacy)]:
        lines = [*lines, "", *table(["site", "ε spent", "δ", "noise multiplier"], rows)]
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
