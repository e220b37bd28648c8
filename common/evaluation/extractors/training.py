"""How the default feature extractors are trained: a small network learns to undo distortions.

Pictures of phantoms made for the extractor alone are distorted at random, and the network learns to
restore them and to mark place by place how strong the blur, the noise, the displacement of patches
and, in colour, the colour cast are. To do so it must know what is in such pictures, sharp edges and
where what belongs. No generated image takes part, and no picture of a real patient: what real
pictures have and phantoms lack, the network has never met. To judge pictures of a real cohort, a
network trained on real ones can be given as a file, with ``--extractor``.

Training is deterministic: one thread, fixed seeds, its own random state. The same machine and
libraries make the same bytes; another CPU may round differently, which the hash then shows. Whoever
changes here, or in the network, what weights are made raises ``RECIPE_VERSION`` of every recipe.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from common.evaluation.extractors.network import PLACES, SIZE, PlaceNetwork
from common.seeding import derive_seed

STEPS = 400
BATCH = 64
LEARNING_RATE = 3e-3
RESTORE_WEIGHT, MARK_WEIGHT = 4.0, 10.0

_BLUR_TAPS = 12  # the kernel's half width, three SD of the widest


def train_network(
    draw: Callable[[], np.ndarray],
    *,
    seed: int,
    steps: int,
    channels: int,
    components_of_distortions: bool = False,
) -> PlaceNetwork:
    """Draw phantoms, train on them, find the principal components of their features.

    Parameters
    ----------
    draw : callable
        Returns pictures, float32 in [-1, 1], shape (N, channels, 64, 64).
    seed : int
        No cohort's.
    steps : int
    channels : int
        1 or 3.
    components_of_distortions : bool
        See `PlaceNetwork.set_components`.
    """
    with reproducible(derive_seed(seed, purpose="initial weights")):
        images = torch.from_numpy(draw())
        network = PlaceNetwork(channels)
        _train(network, images, steps, seed)
        network.eval()
        network.set_components(
            images, _distorted(images, seed) if components_of_distortions else None
        )
    return network


def _distorted(images: Tensor, seed: int) -> Tensor:
    """Each picture, distorted once."""
    generator = torch.Generator().manual_seed(derive_seed(seed, purpose="components"))
    return torch.cat([distort(part, generator)[0] for part in images.split(BATCH)])


def distort(images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Displace patches, blur, add noise, shift colours, each in about a third of the pictures.

    Blur and noise fill the picture or a random half of it. Their strengths are log-uniform: a
    Gaussian of SD 1/128 to 1/16 of the picture's side, noise of SD 0.02 to 0.5, of each channel
    for itself. Colours are shifted in pictures of three channels only.

    Parameters
    ----------
    images : Tensor
        (N, C, R, R) in [-1, 1], R a multiple of 16.
    generator : torch.Generator

    Returns
    -------
    images : Tensor
        (N, C, R, R) in [-1, 1].
    marks : Tensor
        Strength of blur, of noise, of displacement and, where C is 3, of the shift of colours at
        each pixel, each in [0, 1], (N, 3 or 4, R, R).
    """
    n, _, side, _ = images.shape
    patch = side // (4, 8, 16)[int(torch.randint(3, (), generator=generator))]
    share = 0.6 * torch.rand(n, generator=generator) * _chosen(n, 0.35, generator).flatten()
    images, displaced = displace(images, patch, share, generator)
    strength = torch.rand(n, 1, 1, 1, generator=generator)
    where = _region(n, side, generator) * _chosen(n, 0.4, generator)
    blurred = blur(images, side / 128 * 8 ** strength.flatten())
    images = torch.lerp(images, blurred, where)
    marks = [where * (0.2 + 0.8 * strength)]
    strength = torch.rand(n, 1, 1, 1, generator=generator)
    where = _region(n, side, generator) * _chosen(n, 0.4, generator)
    noise = torch.randn(images.shape, generator=generator)
    images = images + where * 0.02 * 25**strength * noise
    marks.append(where * (0.2 + 0.8 * strength))
    marks.append(displaced)
    if images.shape[1] == 3:
        images, shifted = shift_colours(images, generator)
        marks.append(shifted.expand(-1, 1, side, side))
    return images.clamp(-1, 1), torch.cat(marks, dim=1)


def shift_colours(images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Change the white balance or the saturation of about a third of the pictures.

    Gains of the three channels are log-normal with a geometric mean of 1; saturation is between
    that of a grey picture and twice the picture's own.

    Parameters
    ----------
    images : Tensor
        (N, 3, R, R), nominally in [-1, 1].
    generator : torch.Generator

    Returns
    -------
    images, strength : Tensor
        (N, 3, R, R), not clipped, and (N, 1, 1, 1) in [0, 1].
    """
    n = len(images)
    chosen = _chosen(n, 0.4, generator)
    cast = _chosen(n, 0.5, generator)  # of those chosen: white balance, else saturation
    strength = torch.rand(n, 1, 1, 1, generator=generator)
    direction = torch.randn(n, 3, 1, 1, generator=generator)
    direction = F.normalize(direction - direction.mean(dim=1, keepdim=True), dim=1)
    gains = torch.exp(chosen * cast * 0.5 * strength * direction)
    paler = _chosen(n, 0.6, generator)
    saturation = 1 + chosen * (1 - cast) * strength * (1 - 2 * paler)
    light = (images + 1) / 2 * gains
    grey = light.mean(dim=1, keepdim=True)
    return 2 * torch.lerp(grey, light, saturation) - 1, chosen * strength


def blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Blur each picture (N, C, R, R) by its own Gaussian; ``sigma`` (N,) in pixels.

    Not shared with `common.evaluation.degradations`, and no more is `displace`: what tries the
    network out must not be the code that trained it, or a fault of the one is hidden by the other.
    """
    taps = torch.arange(-_BLUR_TAPS, _BLUR_TAPS + 1)
    kernels = torch.softmax(-(taps**2) / (2 * sigma[:, None] ** 2), dim=1)  # (N, taps)
    pad = _BLUR_TAPS
    pictures = images.transpose(0, 1)  # (C, N, R, R): each picture has a kernel of its own
    for kernel, edge in (
        (kernels[:, None, None, :], (pad, pad, 0, 0)),
        (kernels[:, None, :, None], (0, 0, pad, pad)),
    ):
        padded = F.pad(pictures, edge, mode="replicate")
        pictures = F.conv2d(padded, kernel, groups=len(images))
    return pictures.transpose(0, 1)


def displace(
    images: Tensor, patch: int, share: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Move a share of each picture's square patches to one another's places.

    Parameters
    ----------
    images : Tensor
        (N, C, R, R), R a multiple of ``patch``.
    patch : int
        Pixels a side.
    share : Tensor
        Of each picture's patches, in [0, 1], (N,).

    Returns
    -------
    images, moved : Tensor
        (N, C, R, R) and (N, 1, R, R); ``moved`` is 1 where a patch was displaced, else 0.
    """
    side = images.shape[-1]
    patches = F.unfold(images, patch, stride=patch)  # (N, pixels, patches)
    count = patches.shape[2]
    moved = torch.zeros(len(images), patch**2, count)
    mixed = patches.clone()
    for i, number in enumerate((share * count).round().int().tolist()):
        if number > 1:  # one patch alone has nowhere to go
            chosen = torch.randperm(count, generator=generator)[:number]
            mixed[i, :, chosen] = patches[i, :, chosen.roll(1)]
            moved[i, :, chosen] = 1
    return tuple(F.fold(one, side, patch, stride=patch) for one in (mixed, moved))


def _train(network: PlaceNetwork, images: Tensor, steps: int, seed: int) -> None:
    """Teach the network to restore distorted pictures, half of them of half the resolution."""
    generator = torch.Generator().manual_seed(derive_seed(seed, purpose="batches"))
    optimizer = torch.optim.Adam(network.parameters(), LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.1
    )
    for step in range(steps):
        whole = images[torch.randint(len(images), (BATCH,), generator=generator)]
        if step % 2:
            whole = whole.flip(3)
        coarse = step % 4 >= 2  # so that pictures of 32 pixels are known as well
        seen, marks = distort(F.avg_pool2d(whole, 2) if coarse else whole, generator)
        seen = F.interpolate(seen, size=(SIZE, SIZE), mode="bilinear")
        restored, told = network(seen)
        loss = RESTORE_WEIGHT * F.mse_loss(restored, whole)
        loss = loss + MARK_WEIGHT * F.mse_loss(told, F.adaptive_avg_pool2d(marks, PLACES))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def _chosen(n: int, share: float, generator: torch.Generator) -> Tensor:
    """1 for about a share of the pictures, 0 for the others, shape (N, 1, 1, 1)."""
    return (torch.rand(n, 1, 1, 1, generator=generator) < share).float()


def _region(n: int, side: int, generator: torch.Generator) -> Tensor:
    """Mask (N, 1, R, R): all of a picture, or about half of it with a smooth border line."""
    coarse = torch.randn(n, 1, 4, 4, generator=generator)
    part = F.interpolate(coarse, size=(side, side), mode="bilinear", align_corners=True) > 0
    return torch.maximum(_chosen(n, 0.5, generator), part.float())


@contextmanager
def reproducible(seed: int) -> Iterator[None]:
    """One thread and a random state of its own, both given back at the end.

    PyTorch's own setting does not reach numpy's BLAS, which makes the phantoms, and which rounds
    otherwise with two threads than with one.
    """
    from threadpoolctl import threadpool_limits

    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]), torch.enable_grad(), threadpool_limits(1):
        torch.manual_seed(seed)
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
