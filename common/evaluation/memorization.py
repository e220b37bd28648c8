"""Does a generator copy training scans? Judged at a site, as only a site has its scans.

Features are float64, (N, D), of one extractor, as in `common.evaluation.generation`. Real scans of
other people, held out from training, are copies of nothing by construction, so everything here is
read beside what it gives for them.

**What decides** is how isolated an image's nearest training image is. A copy is near one training
image and far from all others; a smooth average of scans lies nearer to training images than any
scan does, but to many of them alike. So with distances d₁ to the nearest and d₂ to the second
nearest training image, and m, the median of d₁ over the held-out images,

    ρ = d₁ / max(d₂, m / 2).

Without the second term a copy of a scan that the training set holds twice would have ρ = 1. In a
neighbourhood of even density and D dimensions, P(d₁ / d₂ < ρ) = ρ^D (Facco et al. 2017, Sci. Rep.
7, 12140, eq. 5), whatever the number of training images; D follows from the held-out images'
median of ρ, at most `MOST_DIMENSIONS`. With p = ρ^D for each generated image, its look-alikes are
found by Benjamini & Hochberg (1995) at `FALSE_ALARMS`; where there is one, the generator is
flagged. One exact copy among 800 pictures suffices, and so does a quarter of rough ones.

Measured with fedscan-brain at 32 pixels: three sites, 20 to 800 training and 20 to 375 held-out
phantom slices, and as many pictures as training slices, at most 200. Of the cases flagged, by the
number of training slices (270, 180, 24, 24 cases):

===================================  =====  =====  =====  =====
pictures                                20    100    480    800
===================================  =====  =====  =====  =====
scans of other people                0.00   0.00   0.00   0.00
exact copies; a quarter; one         1.00   1.00   1.00   1.00
copies, noise of SD 0.02; a quarter  1.00   1.00   1.00   1.00
one of them                          1.00   0.99   0.96   1.00
copies, noise of SD 0.05             0.99   1.00   1.00   1.00
a quarter of them                    0.96   1.00   0.96   1.00
one of them                          0.56   0.23   0.00   0.04
copies, noise of SD 0.1              0.24   0.01   0.00   0.00
averages of 2 to 20, at one height   0.00   0.00   0.00   0.00
mirror images                        0.02   0.01   0.00   0.00
===================================  =====  =====  =====  =====

(Noise in images of range [-1, 1].) The averages have a ``share_nearer`` of 0.75 to 0.96: by that
number alone they could not be told from copies.

What it cannot see: the mirror image of a training scan, which is about as far away as another
person's scan. A generator trained with mirror images copies those as well: give their features
with the others', as further training images. Nor parts of a scan in an otherwise new picture,
nor anything that the extractor is blind to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.evaluation.generation import distances_by_block, nearest_neighbours

# Chance that a generator that copies nothing is flagged, and the expected share of false ones
# among look-alikes: no site wants to be alarmed by one training in ten.
FALSE_ALARMS = 0.01
# Held-out phantoms have 8 to 14 dimensions, estimated from 10 images anything from 4 to 20; their
# smallest ρ are 0.38 to 0.65. With at most 20 dimensions, up to 42 % of sets of real scans were
# taken for copies, with at most 10 up to 2 %, with at most 8 none.
MOST_DIMENSIONS = 8.0
FEWEST = 2  # training and held-out images: a second neighbour, and any spread at all

_NEAREST_FLOOR = 0.5  # times m, see above; held-out images' d₂ is hardly ever below it
_TINY = 1e-12  # ρ above 0 and below 1, where a logarithm is taken


@dataclass(frozen=True)
class Memorization:
    """How a generator's pictures lie to its training scans, beside how other real scans do.

    Everything but ``reason`` is None where there are too few images to judge by.

    Parameters
    ----------
    authenticity, authenticity_held_out : float
        See :func:`authenticity`; of the generated and of the held-out images.
    share_nearer, generated_median, held_out_median : float
        See :func:`copying`.
    look_alikes : float
        Share of the generated images that are look-alikes, as the module says.
    flagged : bool
        Whether there is any.
    reason : str
        In words, without anything that belongs to one scan.
    """

    authenticity: float | None
    authenticity_held_out: float | None
    share_nearer: float | None
    generated_median: float | None
    held_out_median: float | None
    look_alikes: float | None
    flagged: bool | None
    reason: str


def judge_copying(
    training: np.ndarray,
    generated: np.ndarray,
    held_out: np.ndarray,
) -> Memorization:
    """Judge whether a generator copies what it was trained on.

    Parameters
    ----------
    training, generated, held_out : np.ndarray
        Features (N, D) of one extractor. No held-out image may be of a training image's person.

    Returns
    -------
    Memorization
    """
    for name, images, least in (
        ("training", training, FEWEST),
        ("held-out", held_out, FEWEST),
        ("generated", generated, 1),
    ):
        if len(images) < least:
            few = f"not judged: {len(images)} {name} images, needs at least {least}"
            return Memorization(*[None] * 7, reason=few)
    found = copying(training, generated, held_out)
    alike = _look_alikes(*_isolation(training, generated, held_out))
    share = float(alike.mean())
    count = int(alike.sum())
    if count:
        reason = (
            f"{count} of {len(alike)} pictures ({share:.1%}) lie so near to one training image, "
            "and so far from all others, as real images of other people do not"
        )
    else:
        reason = f"none of {len(alike)} pictures singles out a training image"
    return Memorization(
        authenticity=authenticity(training, generated),
        authenticity_held_out=authenticity(training, held_out),
        **found,
        look_alikes=share,
        flagged=bool(count),
        reason=reason,
    )


def authenticity(training: np.ndarray, generated: np.ndarray) -> float:
    """Share of generated images that are authentic (Alaa et al. 2022, arXiv 2102.08921, 3.3).

    An image is authentic where it is farther from its nearest training image than that training
    image is from its own nearest other one.

    Training slices come several a participant. On phantoms the nearest other one is of the same
    participant, at a neighbouring height, for 37 % (of 800 slices) to 66 % (of 80). So the distance
    to beat is in part one within a person, shorter than one between people, and images pass
    for authentic more easily than with one slice a person. The same holds for held-out images.

    Parameters
    ----------
    training : np.ndarray
        (N, D), N at least 2.
    generated : np.ndarray
        (M, D), M at least 1.
    """
    distances, nearest = nearest_neighbours(training, generated)
    own = _two_nearest(training, training)[:, 1]  # the nearest is each itself, or its double
    return float((distances > own[nearest]).mean())


def copying(training: np.ndarray, generated: np.ndarray, held_out: np.ndarray) -> dict[str, float]:
    """Whether generated images lie nearer to training images than other real ones do.

    Returns
    -------
    dict of str to float
        Medians of the distance to the nearest training image, and ``share_nearer``, the
        probability that a generated image lies nearer to one than a held-out real image does:
        1/2 when it has learnt the distribution, towards 1 when it copies, towards 0 when it is far
        from everything (the Mann-Whitney statistic of Meehan et al. 2020, over all cells).
    """
    from scipy.stats import mannwhitneyu

    ours, _ = nearest_neighbours(training, generated)
    theirs, _ = nearest_neighbours(training, held_out)
    nearer = mannwhitneyu(theirs, ours).statistic / (len(ours) * len(theirs))
    return {
        "generated_median": float(np.median(ours)),
        "held_out_median": float(np.median(theirs)),
        "share_nearer": float(nearer),
    }


def strongest(
    training: np.ndarray, generated: np.ndarray, count: int, *, held_out: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find the generated images that most single out one training image, for eyes to judge.

    They are the strongest whether or not any is a look-alike.

    Parameters
    ----------
    training : np.ndarray
        (N, D), N at least 2.
    generated : np.ndarray
        (M, D).
    count : int
        At most so many; each generated image comes once at most.
    held_out : np.ndarray, optional
        Gives m, as the module says. Without it, copies of what the training set holds twice may
        be missed, unless they are exact.

    Returns
    -------
    generated, training : np.ndarray
        Indices, strongest first, and for each the index of its nearest training image.
    distances : np.ndarray
        From one to the other.
    """
    rho = _rho(training, generated, 0.0 if held_out is None else _typical(training, held_out))
    distances, nearest = nearest_neighbours(training, generated)
    order = np.argsort(rho, kind="stable")[:count]
    return order, nearest[order], distances[order]


def write_look_alikes(
    path: Path,
    generated: np.ndarray,
    training: np.ndarray,
    generated_indices: Sequence[int] | np.ndarray,
    training_indices: Sequence[int] | np.ndarray,
    distances: Sequence[float] | np.ndarray,
) -> None:
    """Write generated images above their nearest training images, with the distance between them.

    The picture shows people's images: it stays at the site, and no other user can read it.

    Parameters
    ----------
    path : Path
    generated, training : np.ndarray
        Images (N, C, R, R) in [-1, 1].
    generated_indices, training_indices, distances : sequence
        Of one length, at least 1, as :func:`strongest` gives them.
    """
    from common.imaging.pictures import write_grid

    rows = [generated[np.asarray(generated_indices)], training[np.asarray(training_indices)]]
    captions = [f"{distance:.3g}" for distance in distances]
    write_grid(path, rows, names=["generated", "training"], captions=captions)


def _isolation(
    training: np.ndarray, generated: np.ndarray, held_out: np.ndarray
) -> tuple[np.ndarray, float]:
    """Return ρ of the generated images, (N,), and D."""
    typical = _typical(training, held_out)
    median = np.clip(np.median(_rho(training, held_out, typical)), _TINY, 1 - _TINY)
    dimensions = min(MOST_DIMENSIONS, float(np.log(0.5) / np.log(median)))
    return _rho(training, generated, typical), dimensions


def _look_alikes(rho: np.ndarray, dimensions: float) -> np.ndarray:
    """Which images are look-alikes, (N,) of bool."""
    from scipy.stats import false_discovery_control

    return false_discovery_control(np.minimum(rho, 1.0) ** dimensions) <= FALSE_ALARMS


def _rho(training: np.ndarray, images: np.ndarray, typical: float) -> np.ndarray:
    first, second = _two_nearest(training, images).T
    scale = np.maximum(second, _NEAREST_FLOOR * typical)
    return np.divide(first, scale, out=np.zeros_like(first), where=first > 0)


def _typical(training: np.ndarray, held_out: np.ndarray) -> float:
    """Return m, the median distance of held-out images to their nearest training image."""
    return float(np.median(nearest_neighbours(training, held_out)[0]))


def _two_nearest(training: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Distances to the nearest and to the second nearest training image, (N, 2)."""
    # Copied: a view would keep its whole block, and all blocks are the whole matrix.
    return np.concatenate(
        [np.partition(d, 1, axis=1)[:, :2].copy() for _, d in distances_by_block(images, training)]
    )
