"""Mathematics of a StyleGAN2-ADA training: losses, penalties and schedules, each a pure function.

Symbols are the papers': Goodfellow et al. 2014 (arXiv 1406.2661), Mescheder et al. 2018
(arXiv 1801.04406, R1), Karras et al. 2019 (arXiv 1812.04948, style mixing), Karras et al. 2020
(arXiv 1912.04958, StyleGAN2) and Karras et al. 2020 (arXiv 2006.06676, ADA).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def logistic_loss(logits: Tensor, *, real: bool) -> Tensor:
    """Cost of D's logits where all images should be judged real, or all fake.

    -E[log σ(D(x))], or -E[log(1 - σ(D(x)))]. D's loss is the first on reals plus the second on
    fakes; G's, not saturating, is the first on fakes (Goodfellow 2014, eq. 1 and section 3).
    """
    return F.softplus(-logits if real else logits).mean()


def r1_penalty(images: Tensor, logits: Tensor) -> Tensor:
    """Squared gradient norm of D at each real image; R1 is γ/2 times its mean.

    Parameters
    ----------
    images : Tensor
        (N, C, R, R), requiring gradients.
    logits : Tensor
        (N,), computed from them.

    Returns
    -------
    Tensor
        (N,), ‖∇ₓ D(x)‖² (Mescheder 2018, eq. 9), differentiable by D's parameters.
    """
    (gradients,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return gradients.square().sum((1, 2, 3))


def diversity_shortfall(first: Tensor, second: Tensor, spread: float) -> Tensor:
    """How much more alike two fakes of one label are than two real images of one label.

    The logistic loss alone lets G, early in training, paint the mean of each label whatever z is.
    A diversity-sensitive GAN adds -min(‖G(z₁) - G(z₂)‖ / ‖z₁ - z₂‖, τ) with a bound τ to be chosen
    (Yang et al. 2019, arXiv 1901.09024, eq. 2; Mao et al. 2019, arXiv 1903.05628). Here the bound
    is what the data show, and the distance is the mean square, whose expectation is known::

        max(0, 1 - E‖G(z₁, c) - G(z₂, c)‖² / E‖x₁ - x₂‖²)    x₁, x₂ real, of one label

    So it is between 0 and 1, and exerts no force where fakes vary as much as real images do.

    Parameters
    ----------
    first, second : Tensor
        (N, C, R, R) each: fakes of the same labels, of other latents.
    spread : float
        E‖x₁ - x₂‖², above 0.
    """
    return F.relu(1 - (first - second).square().sum((1, 2, 3)).mean() / spread)


def path_lengths(images: Tensor, ws: Tensor, noise: Tensor) -> Tensor:
    """Length of the change of each image with w (StyleGAN2, section 3.2 and eq. 4).

    Parameters
    ----------
    images : Tensor
        (N, C, R, R), computed from ``ws``.
    ws : Tensor
        (N, num_ws, w_dim), requiring gradients.
    noise : Tensor
        y, standard normal, the shape of the images.

    Returns
    -------
    Tensor
        (N,), ‖Jᵀ_w y‖ / R, the root of the mean over layers of each layer's squared norm;
        differentiable by G's parameters.
    """
    y = noise / (images.shape[2] * images.shape[3]) ** 0.5
    (gradients,) = torch.autograd.grad((images * y).sum(), ws, create_graph=True)
    return gradients.square().sum(2).mean(1).sqrt()


def mixing_cutoffs(count: int, num_ws: int, share: float, generator: torch.Generator) -> Tensor:
    """Draw the layer at which each image changes to its second latent.

    Returns
    -------
    Tensor
        (count,) integers: uniform in 1 … num_ws - 1 for a ``share`` of the images, num_ws (never)
        for the others.
    """
    device = generator.device
    cutoffs = torch.randint(1, max(num_ws, 2), (count,), generator=generator, device=device)
    mixed = torch.rand(count, generator=generator, device=device) < share
    return torch.where(mixed, cutoffs, num_ws)


def mix_styles(first: Tensor, second: Tensor, cutoffs: Tensor) -> Tensor:
    """Take each image's layers below its cutoff from one latent, the others from another.

    Parameters
    ----------
    first, second : Tensor
        (N, num_ws, w_dim).
    cutoffs : Tensor
        (N,).
    """
    layer = torch.arange(first.shape[1], device=first.device)
    return torch.where((layer < cutoffs[:, None]).unsqueeze(2), first, second)


def lazy_adam(
    learning_rate: float, betas: tuple[float, float], interval: int | None
) -> tuple[float, tuple[float, float]]:
    """Adam's constants where every ``interval``-th iteration makes one more step.

    With c = k / (k + 1): λ' = c·λ and β' = β^c, so that a cycle of k iterations changes and
    remembers as much as k steps would (StyleGAN2, appendix B, "lazy regularization").

    Parameters
    ----------
    learning_rate : float
    betas : tuple of float
    interval : int or None
        k; None without regularisation.
    """
    c = 1.0 if interval is None else interval / (interval + 1)
    return learning_rate * c, (betas[0] ** c, betas[1] ** c)


def ema_beta(images: int, *, half_life: float, rampup: float, images_seen: int) -> float:
    """Weight of the old average of G after a step of so many images.

    Parameters
    ----------
    images : int
        Images of the step (in a federation, of the round).
    half_life : float
        Images after which half of the old average is left.
    rampup : float
        At the start the half-life is at most this share of the images seen; 0: always whole.
    images_seen : int
        Before the step.

    Returns
    -------
    float
        β = 0.5^(images / half-life); 0 where the half-life is 0.
    """
    if rampup:
        half_life = min(half_life, rampup * images_seen)
    return 0.5 ** (images / half_life) if half_life > 0 else 0.0


def next_p(p: float, mean_sign: float, *, target: float, step: float) -> float:
    """Strengthen the augmentation where D overfits, weaken it where not (ADA, section 3.1).

    Parameters
    ----------
    p : float
        The augmentation's probability.
    mean_sign : float
        r_t = E[sign D(real)]: 0 without overfitting, 1 where D knows the training set. NaN, as
        after a division by no image, leaves p alone.
    target : float
    step : float
        By how much p changes: images between two changes over the images from p = 0 to 1.

    Returns
    -------
    float
        In [0, 1].
    """
    way = (mean_sign > target) - (mean_sign < target)
    return min(max(p + way * step, 0.0), 1.0)
