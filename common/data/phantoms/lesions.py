"""Simulated skin lesions with a known truth: who the patient is, and what the lesion is like.

A lesion is a draw of 25 *latents*, one for each dermatoscopic criterion in :data:`CRITERIA`, and a
seed for all that carries no diagnosis. :func:`common.data.phantoms.lesion_rendering.render` turns
them into a picture without reading the diagnosis, and
:mod:`common.data.phantoms.dermatoscopes` adds what a hospital's instrument makes of it. Nobody
was photographed and no data set was used.

The diagnoses are the eight of ISIC 2019 (Tschandl et al. 2018, Sci Data 5:180161; Combalia et al.
2019, arXiv:1908.02288): melanoma (MEL), nevus (NV), basal cell carcinoma (BCC), actinic keratosis
(AK), benign keratosis (BKL), dermatofibroma (DF), vascular lesion (VASC) and squamous cell
carcinoma (SCC).

*Twelve criteria of melanoma.* Asymmetry, border, colour and diameter are those of the ABCD rule
(Stolz et al. 1994, Eur J Dermatol 4:521); atypical network, irregular globules and streaks,
blue-whitish veil, regression and milky-red areas those of the seven-point checklist (Argenziano et
al. 1998, Arch Dermatol 134:1563). Melanoma and nevus differ in the means of these alone, by d = 0.6
to 0.9 within-class standard deviations each.

*Thirteen criteria of kind.* Which structures there are at all: pigment and a melanocytic pattern;
blue-grey nests and arborizing vessels of BCC (Menzies et al. 2000, Arch Dermatol 136:1012);
the strawberry pattern of AK (Zalaudek et al. 2006, Br J Dermatol 155:951); cysts and comedo-like
openings, ridges and fingerprints of BKL (Braun et al. 2002, Arch Dermatol 138:1556); the white
centre of DF (Zaballos et al. 2008, Arch Dermatol 144:75); lacunae of VASC (Zaballos et al. 2007,
Arch Dermatol 143:318); keratin and coiled vessels of SCC (Rosendahl et al. 2012, Arch Dermatol
148:1386). Most lie some 4 SD apart between the diagnosis that has the structure and those that do
not, so that a foreign structure is rare and a missing one is not.

The sources say which criteria point to which diagnosis; the sizes of the means are choices.

Latents are Gaussian with unit SD and no correlation in every diagnosis, so the best classifier of
them is linear. Within a hospital a picture depends on the diagnosis through its latents only, so
the accuracy of that classifier bounds that of any classifier of pictures, however many there are
of the lesion (:func:`best_accuracy`): at even odds,
Φ(|d| / 2) = 0.921 for melanoma or nevus, with |d| = 2.82, and 0.975 for the eight diagnoses. Age
and body site, which no picture shows, do depend on the diagnosis.

Pictures show the latents imperfectly, and some only beyond a threshold. Measured once, for melanoma
or nevus at even odds and the three hospitals in equal parts: a convolutional network of four blocks
(0.08 million weights), trained on 1000 pictures of 64 pixels, has an accuracy of 0.77 ± 0.014
and an AUC of 0.83 on 900 others.

Simplifications: the mesh of a network is about twice as wide as in life, for 64 pixels to resolve
it; there are no amelanotic, facial, acral or mucosal patterns; the six other diagnoses are easier
to tell apart than in life.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.special import ndtr

DIAGNOSES = ("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC")
SEXES = ("female", "male")
BODY_SITES = (
    "anterior torso",
    "posterior torso",
    "lower extremity",
    "upper extremity",
    "head/neck",
    "palms/soles",
)

AGES = (61.0, 46.0, 68.0, 69.0, 64.0, 50.0, 52.0, 71.0)  # mean by diagnosis, near ISIC 2019's
AGE_SD = 14.0  # years, within a diagnosis
# Probability of the head and neck beyond a uniform share of the body sites: sun-damaged skin.
HEAD = (0.20, 0.08, 0.35, 0.60, 0.30, 0.02, 0.15, 0.40)

FIELD_MM = 16.0  # width of the field of view at a zoom of 1
EXTRA_LESIONS = 0.6  # mean number of a patient's lesions after the first
EXTRA_PICTURES = 0.4  # mean number of a lesion's pictures after the first


class Criterion(NamedTuple):
    """A dermatoscopic criterion: mean of its latent in each of ``DIAGNOSES``, and its meaning."""

    name: str
    means: tuple[float, ...]
    meaning: str


CRITERIA = (
    #                        MEL    NV    BCC    AK    BKL    DF   VASC   SCC
    Criterion("asymmetry", (0.45, -0.45, 0.3, 0.4, 0.0, -0.6, -0.4, 0.3), "of outline and shade"),
    Criterion("border", (0.45, -0.45, 0.2, 0.2, 0.1, -0.6, -0.2, 0.2), "jagged or notched outline"),
    Criterion("edge", (0.3, -0.3, 0.0, -1.6, 1.8, -1.2, 1.2, 0.3), "abrupt end of the pigment"),
    Criterion("variegation", (0.45, -0.45, -0.4, -0.4, -0.2, -0.4, -0.4, -0.4), "uneven pigment"),
    Criterion("darkness", (0.35, -0.35, -0.3, -0.8, -0.2, -0.5, -0.3, -0.8), "amount of melanin"),
    Criterion("diameter", (0.4, -0.4, 0.2, 0.9, 0.5, -1.0, -1.3, 0.5), "log; 24 % an SD"),
    Criterion("network", (0.45, -0.45, -0.4, -0.4, -0.4, -0.4, -0.4, -0.4), "broad, uneven mesh"),
    Criterion("globules", (0.4, -0.4, -0.4, -0.4, -0.4, -0.4, -0.4, -0.4), "uneven, clustered"),
    Criterion("streaks", (0.4, -0.4, -0.6, -0.8, -0.8, -0.8, -0.8, -0.8), "radial, at the edge"),
    Criterion("veil", (0.45, -0.45, -0.6, -0.8, -0.8, -0.8, -0.6, -0.8), "blue-whitish veil"),
    Criterion("regression", (0.4, -0.4, -0.4, -0.6, -0.4, -0.6, -0.6, -0.6), "white, grey pepper"),
    Criterion("redness", (0.35, -0.35, 0.0, 0.2, -0.5, -0.4, 0.0, 0.2), "milky-red areas"),
    Criterion("pigment", (2.0, 2.0, -1.5, -1.6, 1.4, 0.7, -2.0, -1.8), "brown at all"),
    Criterion("melanocytic", (2, 2, -2, -2, -2, 1.0, -2, -2), "network or globules at all"),
    Criterion("erythema", (-1.0, -1.0, 0.6, 1.8, -1.0, -0.4, 1.6, 1.5), "red ground"),
    Criterion("nests", (-2, -2, 1.3, -2, -2, -2, -2, -2), "blue-grey ovoid nests"),
    Criterion("arborizing", (-2, -2, 1.6, -2, -2, -2, -2, -1.5), "branched vessels, in focus"),
    Criterion("follicles", (-2, -2, -2, 2, -2, -2, -2, -1.5), "strawberry pattern"),
    Criterion("scale", (-2, -2, -1.3, 1.2, -1.2, -2, -2, 1.2), "white-yellow surface scale"),
    Criterion("cysts", (-2, -2, -2, -2, 1.5, -2, -2, -2), "milia-like cysts, comedo openings"),
    Criterion("ridges", (-2, -2, -2, -2, 0.2, -2, -2, -2), "fingerprint lines, moth-eaten edge"),
    Criterion("white_centre", (-2, -2, -1.6, -2, -2, 1.8, -2, -1.6), "scar-like central patch"),
    Criterion("lacunae", (-2, -2, -2, -2, -2, -2, 2, -2), "red to purple blood lakes"),
    Criterion("keratin", (-2, -2, -1.8, -1.3, -1.6, -2, -2, 1.7), "central mass, white circles"),
    Criterion("coiled", (-2, -2, -1.6, -1.0, -2, -2, -2, 1.5), "coiled and hairpin vessels"),
)
LATENTS = tuple(criterion.name for criterion in CRITERIA)
MEANS = np.array([criterion.means for criterion in CRITERIA], float).T  # (8, len(LATENTS))


@dataclass(frozen=True)
class Patient:
    """Who was seen.

    Parameters
    ----------
    age : float
        Years.
    sex : {"female", "male"}
    tone : float
        Melanin of the skin, in the renderer's units: 0.03 very fair, 0.9 dark brown.
    blush : float
        Blood of the skin, in the renderer's units.
    """

    age: float
    sex: str
    tone: float
    blush: float


@dataclass(frozen=True)
class Lesion:
    """The truth about one lesion.

    Parameters
    ----------
    patient : Patient
    diagnosis : str
        One of ``DIAGNOSES``. The renderer does not read it.
    body_site : str
        One of ``BODY_SITES``. The renderer does not read it.
    latents : ndarray, shape (len(LATENTS),)
        Strength of each criterion; within a diagnosis of unit SD about its row of ``MEANS``.
    seed : int
        Of all about the lesion that depends on no diagnosis: where a globule lies, how a vessel
        runs, which of the nevus patterns prevails.
    """

    patient: Patient
    diagnosis: str
    body_site: str
    latents: np.ndarray
    seed: int


@dataclass(frozen=True)
class View:
    """How the dermatoscope was held for one picture.

    Parameters
    ----------
    rotation : float
        Radians.
    shift : tuple of float
        Place of the lesion's centre: to the right and downwards, half-widths of the picture.
    zoom : float
        Magnification; at 1 the picture is ``FIELD_MM`` wide.
    """

    rotation: float = 0.0
    shift: tuple[float, float] = (0.0, 0.0)
    zoom: float = 1.0


def diagnosis_odds(mix: Mapping[str, float], age: float) -> np.ndarray:
    """Probability of each diagnosis at an age, given its share among a hospital's lesions.

    By Bayes' rule, with ages Gaussian in every diagnosis. Over the ages that
    :func:`sample_patient` draws, the mean is the hospital's share.

    Returns
    -------
    ndarray, shape (8,)
    """
    shares = np.array([mix.get(name, 0.0) for name in DIAGNOSES])
    odds = shares * np.exp(-0.5 * ((age - np.array(AGES)) / AGE_SD) ** 2)
    return odds / odds.sum()


def sample_patient(mix: Mapping[str, float], rng: np.random.Generator) -> Patient:
    """Draw a patient of a hospital whose lesions have these shares of the diagnoses."""
    shares = np.array([mix.get(name, 0.0) for name in DIAGNOSES])
    typical = AGES[int(rng.choice(len(DIAGNOSES), p=shares / shares.sum()))]
    return Patient(
        age=float(rng.normal(typical, AGE_SD)),
        sex=str(rng.choice(SEXES)),
        tone=float(np.clip(rng.gamma(3.0, 0.07), 0.03, 0.9)),
        blush=float(np.clip(rng.normal(0.22, 0.07), 0.06, 0.42)),
    )


def sample_lesion(patient: Patient, diagnosis: str, rng: np.random.Generator) -> Lesion:
    """Draw a lesion of a given diagnosis; all but site and latents is independent of it."""
    row = DIAGNOSES.index(diagnosis)
    on_head = rng.random() < HEAD[row]
    anywhere = str(rng.choice(BODY_SITES))
    return Lesion(
        patient=patient,
        diagnosis=diagnosis,
        body_site="head/neck" if on_head else anywhere,
        latents=MEANS[row] + rng.standard_normal(len(LATENTS)),
        seed=int(rng.integers(2**63)),
    )


def sample_view(zoom: float, rng: np.random.Generator) -> View:
    """Draw how the dermatoscope was held; nothing of the lesion enters."""
    x, y = np.clip(rng.normal(0, 0.07, 2), -0.2, 0.2)
    return View(
        rotation=float(rng.uniform(0, 2 * math.pi)),
        shift=(float(x), float(y)),
        zoom=zoom * math.exp(float(np.clip(rng.normal(0, 0.05), -0.15, 0.15))),
    )


def distance(first: str, second: str) -> float:
    """Length |d| of the difference of two diagnoses' mean latents, in within-class SD."""
    i, j = DIAGNOSES.index(first), DIAGNOSES.index(second)
    return float(np.linalg.norm(MEANS[i] - MEANS[j]))


def best_accuracy(
    diagnoses: Sequence[str] = DIAGNOSES,
    shares: Sequence[float] | None = None,
    *,
    draws: int = 20_000,
) -> float:
    """Accuracy that no classifier of pictures can exceed, as it is that of the latents' best one.

    With shares π and means μ, the best classifier takes the largest π_c exp(μ_c·z - |μ_c|² / 2).
    For two diagnoses its accuracy is

        π₁ Φ(d / 2 + log(π₁ / π₂) / d) + π₂ Φ(d / 2 - log(π₁ / π₂) / d),   d = |μ₁ - μ₂|,

    or Φ(d / 2) at even odds. For more it is the mean over z of the largest posterior probability,
    taken over a fixed random sample (standard error at most 0.5 / √(``draws`` · diagnoses)).

    Parameters
    ----------
    diagnoses : sequence of str
        Those to tell apart.
    shares : sequence of float, optional
        Share of each; even by default, when the value also bounds the balanced accuracy.
    draws : int
        Sample of each diagnosis where there are more than two.

    Returns
    -------
    float
    """
    means = MEANS[[DIAGNOSES.index(name) for name in diagnoses]]
    priors = np.full(len(means), 1.0) if shares is None else np.asarray(shares, float)
    priors = priors / priors.sum()
    if len(means) == 2:
        d, log_odds = np.linalg.norm(means[0] - means[1]), math.log(priors[0] / priors[1])
        return float(
            priors[0] * ndtr(d / 2 + log_odds / d) + priors[1] * ndtr(d / 2 - log_odds / d)
        )
    rng = np.random.default_rng(0)
    total = 0.0
    for prior, mean in zip(priors, means, strict=True):
        z = mean + rng.standard_normal((draws, means.shape[1]))
        scores = z @ means.T - (means**2).sum(1) / 2 + np.log(priors)
        posterior = np.exp(scores - scores.max(1, keepdims=True))
        total += prior * float((1 / posterior.sum(1)).mean())
    return total


def best_guess(latents: np.ndarray, diagnoses: Sequence[str] = DIAGNOSES) -> list[str]:
    """Diagnosis that the best classifier of latents (N, len(LATENTS)) gives at even odds."""
    means = MEANS[[DIAGNOSES.index(name) for name in diagnoses]]
    scores = np.atleast_2d(latents) @ means.T - (means**2).sum(1) / 2
    return [diagnoses[i] for i in scores.argmax(1)]
