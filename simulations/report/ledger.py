"""What is said of a run's privacy: its promise, each site's budget, results of attacks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from simulations.report.words import is_number, mapping

FROM_SEED = (
    "The noise follows from run.seed: whoever knows the seed can remove it. Such a simulation "
    "shows what privacy costs, and protects nobody."
)
NOT_KNOWN = (
    "It is not known whether the noise follows from a secret: no site has told, and with secure "
    "sums none does."
)
NO_PRIVACY = (
    "No differential privacy: nothing bounds what the weights tell of one person "
    "(privacy.epsilon) or of one site (privacy.central-epsilon)"
)
ATTACKS = "attacks"  # in the summary of a model
PROMISES = ("privacy", "central_privacy")  # in a summary: to people, and to sites
UNITS = ("person", "site")  # of which a promise may be


def promises(summary: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return what a summary promises: to the people of each site, to the sites, or neither."""
    found = (mapping(summary.get(key)) for key in PROMISES)
    return [one for one in found if is_number(one.get("epsilon"))]


def protection(promise: Mapping[str, Any]) -> str:
    """Say in a sentence what a promise bounds."""
    epsilon, norm = short(promise.get("epsilon")), short(promise.get("max_norm"))
    if unit_of(promise) == "site":
        return (
            "Differential privacy for each site as a whole, by noise at the server, which itself "
            f"sees updates without noise: ε = {epsilon}, δ = {short(promise.get('delta'))} for the "
            f"whole run; a site's update is no longer than {norm} (privacy.central-norm)."
        )
    return (
        f"Differential privacy for each person whom a site trains on: ε = {epsilon} for the whole "
        f"run; the gradient of a person is no longer than {norm} (privacy.max-norm)."
    )


def weaknesses(given: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say what may make promises void: noise that others can compute, or may be able to."""
    lines = []
    for state, words in ((False, FROM_SEED), (None, NOT_KNOWN)):
        weak = [one for one in given if one.get("secret_noise") is state]
        units = " and ".join(dict.fromkeys(map(unit_of, weak)))
        if weak:
            lines.append(words if len(weak) == len(given) else f"Unit {units}: {words}")
    return lines


def unit_of(promise: Mapping[str, Any]) -> str:
    """Return of what a promise is; a file may say anything."""
    return promise["unit"] if promise.get("unit") in UNITS else UNITS[0]


def budgets(promise: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """Yield to whom, ε spent, δ and noise multiplier, as texts: each site's, or that of all."""
    sites: Mapping[str, Any] = mapping(promise.get("sites")) or {"each": {}}  # none has told
    if unit_of(promise) == "site":
        sites = {f"each of {promise.get('sites')}": promise}
    for site, found in sites.items():
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
