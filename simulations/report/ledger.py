"""What is said of a run's privacy: its promise, each site's budget, results of attacks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from simulations.report.words import is_number, mapping

FROM_SEED = (
    "The noise follows from run.seed: whoever knows the seed can remove it. Such a simulation "
    "shows what privacy costs, and protects nobody."
)
NO_PRIVACY = (
    "No differential privacy: nothing bounds what the weights tell of one person (privacy.epsilon)"
)
ATTACKS = "attacks"  # in the summary of a model
UNITS = ("person", "site")  # of which a promise may be


def promise(privacy: Mapping[str, Any]) -> list[str]:
    """Say in sentences what a summary's ``privacy`` promises; nothing where there is none."""
    if not is_number(privacy.get("epsilon")):
        return []
    unit = unit_of(privacy)
    lines = [
        f"Differential privacy for each {unit} whom a site trains on: ε = {privacy['epsilon']:g} "
        f"for the whole run; the gradient of a {unit} is no longer than "
        f"{short(privacy.get('max_norm'))} (privacy.max-norm)."
    ]
    return lines if privacy.get("secret_noise") else [*lines, FROM_SEED]


def unit_of(privacy: Mapping[str, Any]) -> str:
    """Return of what a promise is; a file may say anything."""
    return privacy["unit"] if privacy.get("unit") in UNITS else UNITS[0]


def budgets(privacy: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """Yield site, ε spent, δ and noise multiplier of each site, as texts."""
    for site, found in mapping(privacy.get("sites")).items():
        one = mapping(found)
        yield (site, *(short(one.get(key)) for key in ("epsilon", "delta", "noise_multiplier")))


def short(value: object) -> str:
    """Return three digits of a number."""
    return f"{value:.3g}" if is_number(value) else "–"


def result(attack: Mapping[str, Any]) -> tuple[str, str]:
    """Return what an attack is measured by and its result with the 95 % interval, as texts."""
    of_images = attack.get("kind") == "inversion"
    found = mapping(attack.get("better" if of_images else "auc"))
    name = "share nearer" if of_images else "AUROC"
    if not is_number(found.get("mean")):
        return name, "–"
    text = f"{found['mean']:.2f}"
    if is_number(found.get("low")) and is_number(found.get("high")):
        text += f" ({found['low']:.2f} to {found['high']:.2f})"
    return name, text


def about_whom(attack: Mapping[str, Any]) -> str:
    """Say how many people or images a result is of."""
    if persons := mapping(attack.get("persons")):
        return f"{persons.get('in')} and {persons.get('out')}"
    if is_number(attack.get("people")):
        return f"{attack['people']} (D = {attack.get('features')})"  # of so many features
    return f"{attack['images']} images" if is_number(attack.get("images")) else ""


def told(attacks: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Leave out, of moments, all but those over the most people of each site."""
    most: dict[tuple[object, object], float] = {}
    for one in attacks:
        key = (one.get("kind"), one.get("site"))
        most[key] = max(most.get(key, 0), one["people"] if is_number(one.get("people")) else 0)
    return [
        one for one in attacks if (one.get("people") or 0) == most[one.get("kind"), one.get("site")]
    ]
