"""``fedscan-brain``: the default extractor for axial slices of heads.

It is trained on phantom scans by scanners and of subjects that no cohort has, which deform one
template (MNI152, an average of healthy volunteers). It knows heads, sharp edges and where what
belongs, but no lesion, no real artefact and nothing else that phantoms lack.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from common.data.dataset import Dataset, pool
from common.data.phantoms.cohorts import PHANTOM_TEST, ensure_brains, phantom_sites
from common.data.site_data import open_split
from common.evaluation.extractors.network import SIZE, PlaceNetwork
from common.evaluation.extractors.plan import (
    DIVERSITY,
    SHOWN,
    Pictures,
    Step,
    few_people,
    few_pictures,
    groups_kept,
    spoilt,
)
from common.evaluation.extractors.training import STEPS, train_network
from common.imaging.cohorts import PHANTOM_VERSION, plan_site, subject_volume
from common.imaging.prepare import FIELD_OF_VIEW_MM, PREPARE_VERSION, prepare_volume
from common.imaging.slices import LEVELS_MM, axial_slices
from common.seeding import derive_seed
from common.studies.study import load_study

RECIPE_VERSION = 1  # raise it with every change of the weights made
SEED = 20_260_101  # no cohort's: cohorts differ by seed and site names
RESOLUTION = 32  # pixels a side of the pictures that it is validated on
SCANNERS = tuple(f"extractor-{number}" for number in range(8))  # each draws its own profile
SUBJECTS = 20  # of each scanner
HEIGHTS_MM = tuple(np.linspace(-13.5, 31.5, 10).tolist())


def version() -> str:
    """Version of everything in the code that decides the weights."""
    return f"r{RECIPE_VERSION}-p{PHANTOM_VERSION}-v{PREPARE_VERSION}"


def make_network(*, subjects: int = SUBJECTS, steps: int = STEPS) -> PlaceNetwork:
    """Make the network, in about half a minute.

    Parameters
    ----------
    subjects : int
        Of each scanner, at least 4. Anything but the default is for tests.
    steps : int
    """
    return train_network(lambda: training_pictures(subjects), seed=SEED, steps=steps, channels=1)


def training_pictures(subjects: int = SUBJECTS) -> np.ndarray:
    """Slices of the recipe's own phantoms, float32 in [-1, 1], shape (N, 1, 64, 64)."""
    found = []
    for site in SCANNERS:
        for subject in plan_site(site, n=subjects, n_test=0, seed=SEED):
            volume, affine = subject_volume(site, subject, SEED)
            cube = prepare_volume(volume, affine, image_size=SIZE)
            found.append(axial_slices(cube, HEIGHTS_MM))
    return 2 * np.concatenate(found)[:, None] - 1


def validation_pictures(
    resolution: int,
    cache: Path,
    sizes: Mapping[str, int] | None = None,
    n_test: int = PHANTOM_TEST,
) -> tuple[Pictures, Pictures]:
    """Training slices of a phantom cohort, and held-out ones with as large a share of each site.

    Held-out are the first test participants of each site: with sites in other proportions, even
    real slices would be far from real ones.

    Parameters
    ----------
    resolution : int
    cache : Path
        Where phantoms and prepared scans are kept.
    sizes : mapping of str to int, optional
        Training and validation subjects of each site; by default the default cohort's.
    n_test : int
        Test subjects of each site.
    """
    study = load_study("brain-sex")

    def slices(site: str, folder: Path, split: str) -> Dataset:
        stacks = open_split(
            study, site, folder, split, size=resolution, heights_mm=LEVELS_MM, cache=cache
        )
        return stacks.levels(LEVELS_MM)

    sizes = phantom_sites(3) if sizes is None else sizes
    train, test = [], []
    for site, n in sizes.items():
        folder = ensure_brains(cache, site, n=n, n_test=n_test)
        train.append(slices(site, folder, "train"))
        own = slices(site, folder, "test")
        first = list(dict.fromkeys(own.persons))[: round(n_test * n / max(sizes.values()))]
        test.append(own.subset(np.isin(own.persons, first)))
    return of_slices(pool(train)), of_slices(pool(test))


def of_slices(slices: Dataset) -> Pictures:
    """Slices as pictures to validate on."""
    labels = {
        kind: np.array([label[kind] for label in slices.conditions]) for kind in ("site", "sex")
    }
    heights = np.array([float(label["height"]) for label in slices.conditions])
    images = 2 * slices.images() - 1
    return Pictures(images, np.array(slices.persons), {**labels, "height": heights})


def validation_steps(real: Pictures, seed: int = 0) -> Iterator[Step]:
    """Spoil held-out slices, of all levels of each participant, in every way.

    That one sex is missing is shown but not judged: nobody sees it in single slices of some 100
    people.
    """
    from common.evaluation import degradations

    images = real.images

    def rng(series: str) -> np.random.Generator:
        return np.random.default_rng(derive_seed(seed, purpose=series))

    def share(mm: float) -> float:
        return mm / FIELD_OF_VIEW_MM

    blurs = (3, 5, 8, 16, 32)
    pairs = [(f"{mm}", degradations.blur(images, share(mm))) for mm in blurs]
    yield from spoilt("blur, SD in mm", images, pairs)
    draw = rng("noise")
    noises = (0.025, 0.05, 0.1, 0.2, 0.4)
    pairs = [(f"{sd}", degradations.noise(images, sd, draw)) for sd in noises]
    yield from spoilt("noise, SD", images, pairs)
    for across in (4, 8):
        draw = rng(f"shuffle {across}")
        pairs = [
            (f"{s}", degradations.shuffle(images, s, draw, across=across))
            for s in (0.125, 0.25, 0.5, 1.0)
        ]
        yield from spoilt(f"displaced patches of {across}x{across}, share", images, pairs)
    draw = rng("warp")
    pairs = [
        (f"{mm}", degradations.warp(images, share(mm), draw, smooth=share(20)))
        for mm in (5, 10, 20)
    ]
    yield from spoilt("bent, SD in mm", images, pairs)
    pairs = [(f"{mm}", degradations.mosaic(images, share(mm))) for mm in (13.5, 27, 54)]
    yield from spoilt("mosaic, tile in mm", images, pairs)
    draw = rng("phases")
    pairs = [(f"{s}", degradations.random_phases(images, s, draw)) for s in (0.25, 0.5, 1.0)]
    yield from spoilt("random phases, share", images, pairs)
    yield from _fewer_kinds(real, rng("kinds"))


def _fewer_kinds(real: Pictures, rng: np.random.Generator) -> Iterator[Step]:
    """Series that lose variety, but in which each picture is real, or smoother than real."""
    from common.evaluation import degradations

    heights = np.unique(real.labels["height"])
    own = real.by_person()
    for kept in range(len(heights), 0, -1):  # a slice of each; neighbouring levels, all in turn
        draws = []
        for lowest in range(len(heights)):
            levels = (lowest + np.arange(len(own)) % kept) % len(heights)
            pairs = zip(rng.permutation(np.arange(len(own))), levels, strict=True)
            draws.append(real.images[[own[person][level] for person, level in pairs]])
        yield Step("levels kept", DIVERSITY, str(kept), tuple(draws))
    for label, series, kind in (("site", "sites kept", DIVERSITY), ("sex", "sexes kept", SHOWN)):
        yield from groups_kept(series, kind, real, label, own, rng)
    yield from few_people("participants kept", real, rng)
    yield from few_pictures("different slices", real, rng)
    yield Step("mean of heads", DIVERSITY, "1", (real.images,))
    for heads in (2, 3, 5, 10):
        mixed = degradations.average(real.images, real.labels["height"], heads, rng)
        yield Step("mean of heads", DIVERSITY, f"{heads}", (mixed,))
