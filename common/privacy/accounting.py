"""How much a training with DP-SGD tells of one person: (ε, δ), as bounded by Opacus.

A mechanism M is (ε, δ)-differentially private if for all sets S of results, and all data D and D′
of which one has one person more,

    P[M(D) ∈ S] ≤ exp(ε) · P[M(D′) ∈ S] + δ

(Dwork et al. 2006, "Our data, ourselves", EUROCRYPT). Each step of DP-SGD is a Gaussian mechanism
on a Poisson sample of the people: who knows the *noise multiplier* σ, the sampling rate q and the
number of steps knows ε for any δ (Mironov et al. 2019, "Rényi differential privacy of the sampled
Gaussian mechanism", arXiv 1908.10530).

Two accountants are there. "rdp" composes Rényi divergences: a proven upper bound, computed in
milliseconds. "prv" composes distributions of the privacy loss numerically (Gopi et al. 2021, arXiv
2106.02848): its ε is about a tenth lower and takes a hundred times as long, with an error of
approximation that is bounded but depends on floating-point sums. The default is "rdp".

Opacus is imported when it is needed, so that fedscan works without the extra ``privacy``.
"""

from __future__ import annotations

import importlib
import warnings
from functools import lru_cache
from typing import Any, Literal

from common.errors import ConfigError

Accountant = Literal["rdp", "prv"]

# Every order gives a bound, so that more of them never make ε larger. Opacus's own end at 63, where
# ε below about 0.5 is not found.
ORDERS = (*(1 + k / 10 for k in range(1, 100)), *range(11, 64), *(80, 96, 128, 256, 512, 1024))
PRECISION = 1e-3  # of ε, as a part of it, where a noise is looked for


@lru_cache(maxsize=1024)
def epsilon_of(
    noise_multiplier: float,
    rate: float,
    steps: int,
    delta: float,
    accountant: Accountant = "rdp",
) -> float:
    """Return the ε that so many steps spend.

    Parameters
    ----------
    noise_multiplier : float
        σ, the noise's SD in units of the largest norm of one person's gradient; above 0.
    rate : float
        q, the chance of each person to be in a step, above 0 up to 1.
    steps : int
    delta : float
        Above 0, below 1.
    accountant : {"rdp", "prv"}

    Raises
    ------
    ConfigError
        Opacus is not installed.
    """
    if not steps:
        return 0.0
    counted = _opacus("opacus.accountants").create_accountant(accountant)
    counted.history = [(noise_multiplier, rate, steps)]
    with warnings.catch_warnings():  # a bound at the first or last order is one as well
        warnings.simplefilter("ignore")
        return float(counted.get_epsilon(delta, **_exactness(accountant, epsilon=None)))


@lru_cache(maxsize=256)
def noise_for(
    epsilon: float,
    delta: float,
    rate: float,
    steps: int,
    accountant: Accountant = "rdp",
) -> float:
    """Return the least noise multiplier, nearly, with which steps spend no more than ε.

    Parameters
    ----------
    epsilon, delta : float
        Of all steps together.
    rate : float
        As in :func:`epsilon_of`.
    steps : int
        At least 1.
    accountant : {"rdp", "prv"}

    Raises
    ------
    ConfigError
        Opacus is not installed, or no noise is enough.
    """
    utilities = _opacus("opacus.accountants.utils")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = utilities.get_noise_multiplier(
                target_epsilon=epsilon,
                target_delta=delta,
                sample_rate=rate,
                steps=steps,
                accountant=accountant,
                epsilon_tolerance=PRECISION * epsilon,
                **_exactness(accountant, epsilon),
            )
        except ValueError as error:
            raise ConfigError(
                f"no noise spends so little as ε = {epsilon:g} in {steps} steps: allow more "
                "(privacy.*), or make fewer steps (run.rounds, training.local-steps)"
            ) from error
    return float(found)


def _exactness(accountant: Accountant, epsilon: float | None) -> dict[str, Any]:
    if accountant == "rdp":
        return {"alphas": ORDERS}
    return {} if epsilon is None else {"eps_error": min(0.01, PRECISION * epsilon)}


def _opacus(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            "differential privacy needs Opacus, which is not installed here: pip install "
            "'fedscan[privacy]'"
        ) from error
