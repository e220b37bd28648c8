"""How the default feature extractor is made: the recipe, from nothing but this code.

Phantom scans by scanners and of subjects that no cohort has are distorted at random, and a small
network learns to undo it: to restore the picture, and to mark place by place how strong the blur,
the noise and the displacement of patches are. To do so it must know heads, sharp edges and where
what belongs. No generated image takes part, and no scan of a real patient: what real scans have and
phantoms lack, such as lesions and artefacts, the network has never met. To judge pictures of a real
cohort, a network trained on real scans can be given as a file, with ``--extractor``.

The recipe is deterministic: one thread, fixed seeds, its own random state. The same machine and
libraries make the same bytes; another CPU may round differently, which the hash then shows.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from common.evaluation.brain_network import PLACES, SIZE, BrainNetwork
from common.imaging.cohorts import plan_site, subject_volume
from common.imaging.prepare import prepare_volume
from common.imaging.slices import axial_slices
from common.seeding import derive_seed

RECIPE_VERSION = 1  # raise it with every change of the weights made
SEED = 20_260_101  # no cohort's: cohorts differ by seed and site names
SCANNERS = tuple(f"extractor-{number}" for number in range(8))  # each draws its own profile
SUBJECTS = 20  # of each scanner
HEIGHTS_MM = tuple(np.linspace(-13.5, 31.5, 10).tolist())
STEPS = 400
BATCH = 64
LEARNING_RATE = 3e-3
RESTORE_WEIGHT, MARK_WEIGHT = 4.0, 10.0

_BLUR_TAPS = 12  # the kernel's half width, three SD of the widest


def make_network(*, subjects: int = SUBJECTS, steps: int = STEPS) -> BrainNetwork:
    """Make the network: draw the phantoms, train, find the principal components.

    Parameters
    ----------
    subjects : int
        Of each scanner, at least 4. Anything but the default is for tests.
    steps : int
    """
    with _reproducible(derive_seed(SEED, purpose="initial weights")):
        images = torch.from_numpy(training_slices(subjects))
        network = BrainNetwork()
        _train(network, images, steps)
        network.eval()
        network.set_components(images)
    return network


def training_slices(subjects: int = SUBJECTS) -> np.ndarray:
    """Slices of the recipe's own phantoms, float32 in [-1, 1], shape (N, 1, 64, 64)."""
    found = []
    for site in SCANNERS:
        for subject in plan_site(site, n=subjects, n_test=0, seed=SEED):
            volume, affine = subject_volume(site, subject, SEED)
            cube = prepare_volume(volume, affine, image_size=SIZE)
            found.append(axial_slices(cube, HEIGHTS_MM))
    return 2 * np.concatenate(found)[:, None] - 1


def distort(images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Displace patches, blur and add noise, each to about a third of the pictures.

    Blur and noise fill the picture or a random half of it. Their strengths are log-uniform: a
    Gaussian of SD 1/128 to 1/16 of the picture's side, noise of SD 0.02 to 0.5.

    Parameters
    ----------
    images : Tensor
        (N, 1, R, R) in [-1, 1], R a multiple of 16.
    generator : torch.Generator

    Returns
    -------
    images : Tensor
        (N, 1, R, R) in [-1, 1].
    marks : Tensor
        Strength of blur, of noise and of displacement at each pixel, each in [0, 1], (N, 3, R, R).
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
    return images.clamp(-1, 1), torch.cat([*marks, displaced], dim=1)


def blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Blur each picture (N, 1, R, R) by its own Gaussian; ``sigma`` (N,) in pixels.

    Not shared with `common.evaluation.degradations`, and no more is `displace`: what tries the
    network out must not be the code that trained it, or a fault of the one is hidden by the other.
    """
    taps = torch.arange(-_BLUR_TAPS, _BLUR_TAPS + 1)
    kernels = torch.softmax(-(taps**2) / (2 * sigma[:, None] ** 2), dim=1)  # (N, taps)
    pad = _BLUR_TAPS
    pictures = images.transpose(0, 1)  # each picture a channel with a kernel of its own
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
        (N, 1, R, R), R a multiple of ``patch``.
    patch : int
        Pixels a side.
    share : Tensor
        Of each picture's patches, in [0, 1], (N,).

    Returns
    -------
    images, moved : Tensor
        (N, 1, R, R); ``moved`` is 1 where a patch was displaced and 0 elsewhere.
    """
    side = images.shape[-1]
    patches = F.unfold(images, patch, stride=patch)  # (N, pixels, patches)
    count = patches.shape[2]
    moved = torch.zeros_like(patches)
    mixed = patches.clone()
    for i, number in enumerate((share * count).round().int().tolist()):
        if number > 1:  # one patch alone has nowhere to go
            chosen = torch.randperm(count, generator=generator)[:number]
            mixed[i, :, chosen] = patches[i, :, chosen.roll(1)]
            moved[i, :, chosen] = 1
    return tuple(F.fold(one, side, patch, stride=patch) for one in (mixed, moved))


def _train(network: BrainNetwork, images: Tensor, steps: int) -> None:
    """Teach the network to restore distorted slices, half of them of half the resolution."""
    generator = torch.Generator().manual_seed(derive_seed(SEED, purpose="batches"))
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
def _reproducible(seed: int) -> Iterator[None]:
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
