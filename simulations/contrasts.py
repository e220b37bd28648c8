"""Which models a comparison sets against each other, and which strategy stands for federation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

LOCAL, CENTRALIZED = "local", "centralized"
AT = " at "  # in the name of a model that a site trained alone, wherever it is tested
OTHER_ARMS = (LOCAL, CENTRALIZED)  # named in a contrast beside strategies
USUAL = "fedavg"
# The arms that each headline compares: nobody asks it of a comparison without them.
QUESTIONS = {
    "gain_of_data_poor_site": {"federated", "local"},
    "loss_against_pooling": {"federated", "centralized"},
}

Pair = tuple[str, str]


def at_home(model: str) -> str:
    """Return the name that a site's own model has there; any other model keeps its name."""
    return model.partition(AT)[0] if is_elsewhere(model) else model


def is_home(model: str) -> bool:
    """Whether a name stands for the models that sites trained alone, each at its site."""
    return model.partition("/")[0] == LOCAL and AT not in model


def is_elsewhere(model: str) -> bool:
    """Whether a name is of the model that one site trained alone, at any site."""
    arm, at, _ = model.partition(AT)
    return bool(at) and arm.partition("/")[0] == LOCAL


def reference_of(strategies: Sequence[str], wanted: str | None = None) -> str:
    """Return the strategy that stands for the federated arm; "" where there is none.

    Parameters
    ----------
    strategies : sequence of str
        All that are compared.
    wanted : str, optional
        The one, if it is compared; else it is ``fedavg``, and without that the first.
    """
    preferred = (name for name in (wanted, USUAL) if name in strategies)
    return next(preferred, next(iter(strategies), ""))


def contrasts(
    strategies: Iterable[str], reference: str, named: Iterable[Sequence[str]] = ()
) -> dict[str, Pair]:
    """Return the pairs whose differences, first − second, are told.

    Parameters
    ----------
    strategies : iterable of str
        All that are compared.
    reference : str
        The one that stands for the federated arm.
    named : iterable of (str, str)
        Pairs of strategies, ``local`` and ``centralized``; without any, every further strategy
        is set against the reference.

    Returns
    -------
    dict of str to (str, str)
        ``federated - local`` and ``federated - centralized``, of the reference, unless that pair
        is among the named; then ``FIRST - SECOND``. ``local`` is a site's own model.
    """
    usual = {f"federated - {arm}": (reference, arm) for arm in OTHER_ARMS}
    pairs = [(first, second) for first, second in named]
    pairs = pairs or [(other, reference) for other in strategies if other != reference]
    kept = {name: pair for name, pair in usual.items() if pair not in pairs}
    return kept | {f"{first} - {second}": (first, second) for first, second in pairs}


def name_of(pair: Pair, found: dict[str, Pair]) -> str:
    """Return the name under which a pair's differences are told."""
    return next(name for name, one in found.items() if one == pair)
