"""What goes wrong at a simulated site, as :class:`common.config.trouble.Trouble` asks for it.

Every draw follows from the run's seed, the site's name and, where rounds differ, the round: it is
the same in every process, in every arm, and in a run that goes on. Nothing here touches what models
are judged on.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from common.data.dataset import Dataset, Pixels, in_unit_range
from common.errors import AbsentError
from common.seeding import derive_seed

if TYPE_CHECKING:
    from torch import Tensor

    from common.config.run_config import RunConfig

# How one scanner differs from another: each up or down, as is drawn for the site.
GAIN, GAMMA, SLOPE = 1.25, 1.4, 0.2
BLUR = 0.7  # pixels, SD


def is_away(config: RunConfig, site: str, number: int) -> bool:
    """Tell whether a site is away in a round: not there yet, or by chance."""
    trouble = config.trouble
    if number < trouble.joins.get(site, 1):
        return True
    draw = _rng(config, site, "dropout", round=number).random()
    return bool(draw < trouble.dropout)


def seconds_late(config: RunConfig, site: str) -> float:
    """Return how many seconds a site waits before it trains."""
    return config.trouble.delay if site in config.trouble.slow.split() else 0.0


def attend(config: RunConfig, site: str, number: int) -> None:
    """Let a site be slow or away in a round.

    Raises
    ------
    AbsentError
        The site is away.
    """
    if is_away(config, site, number):
        raise AbsentError(f"site '{site}' is away in round {number}, as its simulation wants it")
    time.sleep(seconds_late(config, site))


def as_trained_on(data: Dataset, config: RunConfig, site: str, number: int) -> Dataset:
    """Return a site's training images as it has them in a round: labels wrong, another scanner.

    Parameters
    ----------
    data : Dataset
    config : RunConfig
    site : str
    number : int
        The round.
    """
    trouble = config.trouble
    if not trouble.is_on:
        return data
    classes = len(config.read_study().label.classes.names)
    labels = data.labels
    if trouble.label_noise:
        labels = noisy(labels, classes, trouble.label_noise, _rng(config, site, "label-noise"))
    if trouble.attack == "label-flip" and site in trouble.attackers.split():
        labels = flipped(labels, classes)
    pixels = data.pixels
    if number >= trouble.rescanned.get(site, math.inf):
        pixels = Rescanned.drawn(pixels, _rng(config, site, "scanner"))
    return replace(data, pixels=pixels, labels=labels)


def noisy(
    labels: NDArray[np.int64], classes: int, share: float, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Replace each known label, with a probability, by one of the other classes.

    Symmetric noise: P(ỹ = k | y) = p / (K - 1) for each k ≠ y. Images without a label stay so.
    """
    wrong = (rng.random(len(labels)) < share) & (labels >= 0)
    other = (labels + rng.integers(1, classes, len(labels))) % classes
    return np.where(wrong, other, labels)


def flipped(labels: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """Return K - 1 - y for each known label (Fang et al. 2020, USENIX Security)."""
    return np.where(labels >= 0, classes - 1 - labels, labels)


@dataclass(frozen=True, eq=False)
class Rescanned:
    """Images as another scanner would show them, as :class:`common.data.dataset.Pixels`.

    x' = min(1, g exp(b_1 r_1 + b_2 r_2) G(x)^γ), where G blurs within rows and columns, the last
    two axes, along which r runs from -1 to 1.

    Parameters
    ----------
    pixels : Pixels
    gain, gamma : float
        g and γ.
    slopes : tuple of float
        b, of the bias field's logarithm.
    """

    pixels: Pixels
    gain: float
    gamma: float
    slopes: tuple[float, float]

    @classmethod
    def drawn(cls, pixels: Pixels, rng: np.random.Generator) -> Rescanned:
        """Draw a scanner: each of its parameters is up or down."""
        gain, gamma, *slopes = rng.choice([-1, 1], 4)
        return cls(pixels, GAIN**gain, GAMMA**gamma, tuple(SLOPE * slope for slope in slopes))

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one image."""
        return self.pixels.shape

    def take(self, index: ArrayLike) -> NDArray[np.float32]:
        """Read some images, (B, *shape) in [0, 1]."""
        from scipy import ndimage  # late: most sites do without

        images = in_unit_range(self.pixels.take(index))
        images = ndimage.gaussian_filter(images, BLUR, axes=(-2, -1), mode="nearest")
        rows, columns = (
            np.exp(slope * np.linspace(-1, 1, side, dtype=np.float32))
            for slope, side in zip(self.slopes, self.shape[-2:], strict=True)
        )
        field = np.float32(self.gain) * rows[:, None] * columns
        return np.minimum(field * images ** np.float32(self.gamma), np.float32(1))


def as_sent(
    trained: Mapping[str, Tensor],
    received: Mapping[str, Tensor],
    config: RunConfig,
    site: str,
    number: int,
) -> dict[str, Tensor]:
    """Return the weights that a site sends: those that it has trained, unless it attacks.

    With u = trained - received, an attacker sends received - k u (sign-flip), or
    received + k ‖u‖ z / ‖z‖ with z of N(0, 1) (scaled-noise).

    Parameters
    ----------
    trained, received : mapping of str to Tensor
        The weights after training and before; ``received`` may have more of them.
    config : RunConfig
    site : str
    number : int
        The round.
    """
    trouble = config.trouble
    if site not in trouble.attackers.split() or trouble.attack not in ("sign-flip", "scaled-noise"):
        return dict(trained)
    update = {name: tensor - received[name] for name, tensor in trained.items()}
    step, length = update, -1.0
    if trouble.attack == "scaled-noise":
        rng = _rng(config, site, "attack", round=number)
        step = {
            name: torch.as_tensor(rng.standard_normal(tuple(update[name].shape))).to(update[name])
            for name in sorted(update)
        }
        length = _norm(update) / _norm(step)
    return {name: received[name] + trouble.attack_scale * length * step[name] for name in trained}


def _norm(tensors: Mapping[str, Tensor]) -> float:
    return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in tensors.values()))


def _rng(config: RunConfig, site: str, purpose: str, **axes: int) -> np.random.Generator:
    purpose = f"simulated {purpose}"
    return np.random.default_rng(derive_seed(config.run.seed, site=site, purpose=purpose, **axes))
