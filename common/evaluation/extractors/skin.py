"""``fedscan-skin``: the default extractor for colour photographs, of skin lesions above all.

It is trained on phantom lesions of all eight diagnoses in equal parts, of patients that no cohort
has, seen through dermatoscopes that no hospital has. It knows skin, pigment, sharp edges, colours
and what a dermatoscope adds, but no structure, skin or artefact that phantoms lack.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from common.data.phantoms.cohorts import PHANTOM_SEED
from common.data.phantoms.dermatoscopes import DERMATOSCOPES, Dermatoscope, acquire, encode
from common.data.phantoms.lesion_cohorts import (
    HOSPITALS,
    LESION_PHANTOM_VERSION,
    Picture,
    patient_pictures,
    split_patients,
    take,
)
from common.data.phantoms.lesion_rendering import render
from common.data.phantoms.lesions import DIAGNOSES, sample_lesion, sample_patient, sample_view
from common.evaluation.extractors.network import SIZE, PlaceNetwork
from common.evaluation.extractors.plan import (
    DIVERSITY,
    SHOWN,
    Pictures,
    Step,
    few_people,
    few_pictures,
    group_missing,
    groups_kept,
    spoilt,
)
from common.evaluation.extractors.training import STEPS, train_network
from common.seeding import derive_seed

RECIPE_VERSION = 1  # raise it with every change of the weights made
SEED = 20_260_102  # no cohort's: cohorts differ by seed and by the streams of their hospitals
RESOLUTION = 64  # pixels a side of the pictures that it is validated on
COMMON = ("BCC", "MEL", "NV")  # diagnoses that are frequent enough to be missed
SCOPES = 16  # each draws its own profile
LESIONS = 10  # of each diagnosis by each dermatoscope
BLURS = (0.015, 0.025, 0.04, 0.075, 0.15)  # SD as a share of the side


def version() -> str:
    """Version of everything in the code that decides the weights."""
    return f"r{RECIPE_VERSION}-p{LESION_PHANTOM_VERSION}"


def make_network(*, lesions: int = LESIONS, steps: int = STEPS) -> PlaceNetwork:
    """Make the network, in a minute or two of one core.

    Parameters
    ----------
    lesions : int
        Of each diagnosis by each dermatoscope. Anything but the default is for tests.
    steps : int
    """
    return train_network(
        lambda: training_pictures(lesions),
        seed=SEED,
        steps=steps,
        channels=3,
        components_of_distortions=True,
    )


def training_pictures(lesions: int = LESIONS) -> np.ndarray:
    """Pictures of the recipe's own phantoms, float32 in [-1, 1], shape (N, 3, 64, 64)."""
    found = []
    for number in range(SCOPES):
        rng = np.random.default_rng(derive_seed(SEED, purpose="phantoms", dermatoscope=number))
        scope = draw_dermatoscope(rng)
        for diagnosis in DIAGNOSES * lesions:
            patient = sample_patient({diagnosis: 1.0}, rng)
            lesion = sample_lesion(patient, diagnosis, rng)
            light = render(lesion, SIZE, sample_view(scope.zoom, rng))
            found.append(acquire(light, scope, rng))
    return _to_images(np.stack(found))


def draw_dermatoscope(rng: np.random.Generator) -> Dermatoscope:
    """Draw an instrument from ranges about as wide as those of real ones."""
    return Dermatoscope(
        white=tuple(rng.uniform((0.96, 0.92, 0.82), (1.10, 1.04, 1.12))),
        saturation=rng.uniform(0.75, 1.2),
        contrast=rng.uniform(0.88, 1.12),
        falloff=rng.uniform(0.05, 0.35),
        tilt=rng.uniform(0.02, 0.18),
        points=int(rng.integers(75, 260)),
        noise=rng.uniform(0.005, 0.025),
        quality=90,
        zoom=rng.uniform(0.8, 1.2),
        hair=rng.uniform(0.5, 5.0),
        frame=rng.uniform(0.0, 0.5),
        corners=rng.uniform(0.0, 0.4),
        ruler=rng.uniform(0.0, 0.3),
        bubbles=rng.uniform(0.0, 0.35),
        ink=rng.uniform(0.0, 0.08),
        glare=rng.uniform(0.0, 0.5),
    )


def validation_pictures(
    resolution: int,
    cache: Path,
    sizes: Mapping[str, int] | None = None,
    *,
    seed: int = PHANTOM_SEED,
) -> tuple[Pictures, Pictures]:
    """Training and test pictures of a phantom cohort, as decoded from its JPEG files.

    Parameters
    ----------
    resolution : int
    cache : Path
        Not used: the pictures are drawn anew, in a quarter of a minute.
    sizes : mapping of str to int, optional
        Patients of each hospital; by default the first half of the default cohort's.
    seed : int
        Of the cohort.
    """
    if sizes is None:
        sizes = {name: one.patients // 2 for name, one in HOSPITALS.items()}
    found: dict[str, list[Picture]] = {"train": [], "test": []}
    for hospital, patients in sizes.items():
        taken = [one for k in range(patients) for one in patient_pictures(hospital, k, seed)]
        splits = split_patients(taken)
        for picture in taken:
            if (split := splits[picture.patient_id]) in found:
                found[split].append(picture)
    return tuple(_pictures(found[split], seed, resolution) for split in ("train", "test"))


def validation_steps(real: Pictures, seed: int = 0) -> Iterator[Step]:
    """Spoil held-out pictures in every way.

    That a single hospital or diagnosis is missing is shown but not judged: of the rare ones there
    are a few pictures only.
    """
    from common.evaluation import degradations

    images = real.images

    def rng(series: str) -> np.random.Generator:
        return np.random.default_rng(derive_seed(seed, purpose=series))

    pairs = [(f"{100 * sd:g}", degradations.blur(images, sd)) for sd in BLURS]
    yield from spoilt("blur, SD in % of the side", images, pairs)
    for series, add in (("noise", degradations.noise), ("colour noise", degradations.colour_noise)):
        draw = rng(series)
        pairs = [(f"{sd}", add(images, sd, draw)) for sd in (0.025, 0.05, 0.1, 0.2, 0.4)]
        yield from spoilt(f"{series}, SD", images, pairs)
    for across in (4, 8):
        draw = rng(f"shuffle {across}")
        pairs = [
            (f"{s}", degradations.shuffle(images, s, draw, across=across))
            for s in (0.125, 0.25, 0.5, 1.0)
        ]
        yield from spoilt(f"displaced patches of {across}x{across}, share", images, pairs)
    pairs = [(f"{100 * w:g}", degradations.mosaic(images, w)) for w in (1 / 16, 1 / 8, 1 / 4)]
    yield from spoilt("mosaic, tile in % of the side", images, pairs)
    draw = rng("phases")
    pairs = [(f"{s}", degradations.random_phases(images, s, draw)) for s in (0.25, 0.5, 1.0)]
    yield from spoilt("random phases, share", images, pairs)
    pairs = [(f"{s}", degradations.recolour(images, s)) for s in (0.1, 0.2, 0.4)]
    yield from spoilt("white balance, shift of red and blue", images, pairs)
    pairs = [(f"{s}", degradations.desaturate(images, s)) for s in (0.25, 0.5, 1.0)]
    yield from spoilt("colour taken away, share", images, pairs)
    yield from _fewer_kinds(real, rng("kinds"))


def _fewer_kinds(real: Pictures, rng: np.random.Generator) -> Iterator[Step]:
    """Series that lose variety, but in which each picture is real, or smoother than real."""
    from common.evaluation import degradations

    each = list(np.arange(len(real))[:, None])
    for label, series in (("site", "hospitals kept"), ("diagnosis", "diagnoses kept")):
        yield from groups_kept(series, DIVERSITY, real, label, each, rng)
    yield from group_missing("hospital missing", SHOWN, real, "site", HOSPITALS, rng)
    yield from group_missing("diagnosis missing", SHOWN, real, "diagnosis", COMMON, rng)
    yield from few_people("patients kept", real, rng)
    yield from few_pictures("different pictures", real, rng)
    yield Step("mean of pictures", DIVERSITY, "1", (real.images,))
    for count in (2, 3, 5, 10):
        mixed = degradations.average(real.images, real.labels["site"], count, rng)
        yield Step("mean of pictures", DIVERSITY, f"{count}", (mixed,))


def _pictures(taken: Sequence[Picture], seed: int, resolution: int) -> Pictures:
    """Draw pictures, through the bytes of their JPEG files."""
    from PIL import Image

    files = [encode(take(one, seed, resolution), DERMATOSCOPES[one.hospital]) for one in taken]
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(raw))) for raw in files])
    return Pictures(
        _to_images(pixels),
        np.array([one.patient_id for one in taken]),
        {
            "site": np.array([one.hospital for one in taken]),
            "diagnosis": np.array([one.truth.diagnosis for one in taken]),
        },
    )


def _to_images(pixels: np.ndarray) -> np.ndarray:
    """From uint8 (N, R, R, 3) to float32 in [-1, 1], (N, 3, R, R)."""
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), np.float32) / np.float32(127.5) - 1
