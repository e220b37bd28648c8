"""Dermatoscopic structures of a lesion as fields of pigment, blood and horn.

Each structure is a function of a :class:`~common.data.phantoms.lesion_scene.Scene` and adds to its
fields as its latent says; a structure whose latent lies below a threshold is absent. Every lesion
goes through all of them in one order, whatever its diagnosis. Each has a random stream of its own,
so that a change of one latent leaves all other structures where they are.
"""

from __future__ import annotations

import math

import numpy as np

from common.data.phantoms.lesion_canvas import sigmoid, wander
from common.data.phantoms.lesion_scene import Scene, soft

_TURN = 2 * math.pi


def brown(scene: Scene) -> None:
    """Epidermal melanin: shade, colours, network and dark blotches."""
    rng, z, canvas = scene.stream("brown"), scene.z, scene.canvas
    asymmetry, uneven = soft(z["asymmetry"], -0.3), 0.09 + 0.20 * soft(z["variegation"], -0.2)
    amount = 1.3 * math.exp(0.38 * z["darkness"] + rng.normal(0, 0.12))
    amount *= float(sigmoid(1.6 * (z["pigment"] + 0.2)))
    shift = np.float32(0.35 * asymmetry) * np.cos(scene.theta - np.float32(rng.uniform(0, _TURN)))
    off_centre = np.clip(scene.rho + shift * np.minimum(scene.rho, 1.2), 0, 1.5)
    evenly, centre, rim = rng.dirichlet([1.0, 0.7, 0.4])
    shade = evenly + centre * (1.3 - 0.6 * off_centre) + rim * (0.75 + 0.4 * off_centre)
    shade *= 1 + uneven * (canvas.smooth(0.20, rng) + 0.5 * canvas.smooth(0.07, rng))
    shade = np.clip(shade, 0.12, 3)

    scene.reticular, scene.globular, _ = rng.dirichlet([1.1, 0.8, 1.4])
    melanocytic = float(sigmoid(3 * z["melanocytic"]))
    if melanocytic > 0.05:
        shade *= np.clip(1 + melanocytic * _network(scene, off_centre), 0.15, 3)
    blotch = 0.55 * soft(z["variegation"], 0.5) + 0.25 * soft(z["darkness"], 0.5)
    if blotch > 0.05:
        where = sigmoid(6 * (canvas.smooth(0.17, rng) - 0.75 + 0.3 * shift))
        shade += np.float32(blotch) * where
    scene.melanin += np.float32(amount) * scene.mask * shade


def _network(scene: Scene, off_centre: np.ndarray) -> np.ndarray:
    """Relative melanin of a network: fine and fading outwards, or broad and of uneven mesh."""
    rng, canvas = scene.stream("network"), scene.canvas
    atypical = soft(scene.z["network"], -0.2)
    spacing = rng.uniform(0.078, 0.10) * math.exp(0.09 * min(atypical, 2.5) * rng.normal())
    holes = canvas.honeycomb(spacing, 0.35 + 0.40 * min(atypical, 2.0), rng)
    thickness = 0.32 + 0.11 * atypical * (1 + canvas.smooth(0.25, rng))
    lines = sigmoid((thickness - holes) / 0.12) - 0.4
    patches = np.clip(1 + (0.25 + 0.45 * atypical) * canvas.smooth(0.22, rng), 0, 2.2)
    contrast = scene.reticular * (0.75 + 0.25 * atypical)
    return contrast * lines * patches * np.clip(1.35 - 0.6 * off_centre, 0.1, 1.2)


def globules(scene: Scene) -> None:
    """Brown globules: alike and even, or of unlike size and shade, in clusters."""
    rng, z = scene.stream("globules"), scene.z
    irregular = soft(z["globules"], -0.2)
    melanocytic = float(sigmoid(3 * (z["melanocytic"] - 1.0)))
    count = int(rng.poisson(4 + 46 * scene.globular) * melanocytic)
    if not count:
        return
    where = scene.points(count, 0.05, rng, None if irregular < 0.9 else 0.45 + 0.5 / irregular)
    size = 0.025 * np.exp(rng.normal(0, 0.10 + 0.24 * irregular, len(where)))
    shade = np.clip(1 + 0.45 * irregular * rng.standard_normal(len(where)), 0.2, 2.6)
    amount = 0.5 + 0.35 * math.exp(0.38 * z["darkness"])
    scene.melanin += amount * scene.canvas.dots(where, np.minimum(size, 0.08), heights=shade)


def ridges(scene: Scene) -> None:
    """Fingerprint lines of a flat seborrhoeic keratosis or solar lentigo."""
    strength = scene.present("ridges")
    if not strength:
        return
    rng, canvas = scene.stream("ridges"), scene.canvas
    angle = rng.uniform(0, math.pi)
    along = np.float32(math.cos(angle)) * canvas.x + np.float32(math.sin(angle)) * canvas.y
    lines = np.cos(np.float32(_TURN / 0.07) * along + 5.0 * canvas.smooth(0.2, rng))
    weight = np.clip(0.18 + 0.14 * canvas.smooth(0.15, rng), 0, 0.4)
    scene.melanin *= (1 - 0.25 * strength) * (1 + strength * weight * lines)


def cysts(scene: Scene) -> None:
    """Seborrhoeic keratosis: milia-like cysts, comedo-like openings, folds and a waxy ground."""
    strength = scene.present("cysts")
    if not strength:
        return
    rng, canvas = scene.stream("cysts"), scene.canvas
    if rng.random() < 0.5:  # gyri and sulci
        grooves = sigmoid(5 * (canvas.folds(0.14, rng) - 0.5))
        scene.melanin += 0.55 * min(strength, 1.0) * scene.mask * grooves
    waxy = rng.uniform(0.06, 0.22) * np.clip(1 + 0.4 * canvas.smooth(0.2, rng), 0, 2)
    scene.keratin += strength * scene.mask * waxy
    where = scene.points(int(rng.integers(3, 14) * strength), 0.1, rng)
    white = canvas.dots(where, rng.uniform(0.014, 0.03, len(where)), softness=0.3)
    scene.scar += 0.62 * min(strength, 1.0) * white
    where = scene.points(int(rng.integers(3, 13) * strength), 0.1, rng)
    plugs = canvas.dots(
        where,
        rng.uniform(0.018, 0.042, len(where)),
        softness=0.25,
        ratios=rng.uniform(1, 1.5, len(where)),
        angles=rng.uniform(0, _TURN, len(where)),
    )
    scene.melanin += min(strength, 1.0) * rng.uniform(0.8, 1.4) * plugs


def veil(scene: Scene) -> None:
    """Blue-whitish veil: melanin of the dermis under thick horn, over a part of the lesion."""
    strength = min(soft(scene.z["veil"], 0.95), 2.0)
    if strength < 0.08:
        return
    rng, canvas = scene.stream("veil"), scene.canvas
    where = canvas.smooth(0.22, rng) + 0.3 * canvas.smooth(0.07, rng) - 0.3 - 0.5 * scene.rho
    patch = sigmoid(3.4 * where) * scene.mask
    patch *= np.clip(1 + 0.22 * canvas.smooth(0.05, rng), 0.3, 1.6)
    scene.deep += 1.3 * strength * patch
    scene.veil += 0.26 * min(strength, 1.3) * patch


def regression(scene: Scene) -> None:
    """Regression: pigment lost, scar-like white, and blue-grey granules (peppering)."""
    strength = min(soft(scene.z["regression"], 1.0), 2.0)
    if strength < 0.08:
        return
    rng, canvas = scene.stream("regression"), scene.canvas
    patch = sigmoid(6 * (canvas.smooth(0.20, rng) - 0.45)) * scene.mask
    scene.melanin *= 1 - 0.62 * min(strength, 1.3) * patch
    scene.scar += 0.36 * min(strength, 1.3) * patch
    where = scene.points(int(26 * strength), 0.05, rng, 0.4)
    scene.deep += 0.8 * canvas.dots(where, np.full(len(where), 0.012)) * scene.mask


def red_areas(scene: Scene) -> None:
    """Milky-red areas: new vessels and inflammation in a part of the lesion."""
    strength = min(soft(scene.z["redness"], 0.7), 2.0)
    scene.blood += np.float32(0.06) * scene.mask
    if strength < 0.05:
        return
    part = sigmoid(4 * (scene.canvas.smooth(0.22, scene.stream("red areas")) - 0.1))
    scene.blood += 0.5 * strength * part * scene.mask


def erythema(scene: Scene) -> None:
    """Red ground over the whole lesion."""
    strength = float(np.clip((scene.z["erythema"] + 0.6) / 2.2, 0, 1.6))
    if not strength:
        return
    mottled = 1 + 0.22 * scene.canvas.smooth(0.13, scene.stream("erythema"))
    scene.blood += 0.46 * strength * scene.mask * mottled


def follicles(scene: Scene) -> None:
    """Strawberry pattern: white halos with yellow plugs at hair follicles, red between them."""
    strength = scene.present("follicles")
    if not strength:
        return
    rng, canvas = scene.stream("follicles"), scene.canvas
    where = scene.points(int(rng.integers(30, 70) * (scene.radius / 0.5) ** 2), 0.0, rng)
    radii = rng.uniform(0.017, 0.032, len(where))
    halo = canvas.dots(where, 1.9 * radii, softness=0.25) * scene.mask
    scene.blood *= 1.1 - 0.6 * min(strength, 1.2) * halo
    scene.scar += 0.17 * strength * halo
    scene.keratin += 0.40 * min(strength, 1.2) * canvas.dots(where, 0.7 * radii) * scene.mask


def scale(scene: Scene) -> None:
    """White-yellow surface scale in irregular flakes."""
    strength = scene.present("scale")
    if not strength:
        return
    rng, canvas = scene.stream("scale"), scene.canvas
    flakes = canvas.smooth(0.05, rng) + 0.5 * canvas.smooth(0.02, rng) - rng.uniform(0.9, 1.4)
    flakes = strength * sigmoid(4.5 * flakes) * scene.mask
    scene.keratin += 0.26 * flakes
    scene.scar += 0.28 * flakes


def white_centre(scene: Scene) -> None:
    """Scar-like centre of a dermatofibroma: white, with the pigment left at the rim."""
    strength = scene.present("white_centre")
    if not strength:
        return
    rng, canvas = scene.stream("white centre"), scene.canvas
    where = rng.uniform(0.35, 0.6) - scene.rho + 0.12 * canvas.smooth(0.1, rng)
    centre = sigmoid(where / 0.12) * scene.mask
    scene.melanin *= 1 - 0.75 * min(strength, 1.2) * centre
    scene.blood += 0.12 * strength * scene.mask * (1 - centre)
    texture = np.clip(1 + 0.25 * canvas.smooth(0.05, rng), 0, 1.6)
    scene.scar += rng.uniform(0.3, 0.5) * strength * centre * texture


def nests(scene: Scene) -> None:
    """Blue-grey ovoid nests and globules of a basal cell carcinoma, some as leaves at the rim."""
    strength = scene.present("nests")
    if not strength:
        return
    rng, canvas = scene.stream("nests"), scene.canvas
    where = scene.points(int(rng.integers(4, 12) * min(strength + 0.3, 1.3)), 0.04, rng)
    ovoid = canvas.dots(
        where,
        rng.uniform(0.025, 0.085, len(where)),
        softness=0.24,
        ratios=rng.uniform(1.0, 1.9, len(where)),
        angles=rng.uniform(0, _TURN, len(where)),
    )
    ovoid *= np.clip(1 + 0.3 * canvas.smooth(0.05, rng), 0, 2)
    scene.deep += min(strength, 1.2) * rng.uniform(0.9, 1.7) * ovoid
    scene.melanin += min(strength, 1.2) * rng.uniform(0.1, 0.7) * ovoid
    dots = scene.points(int(rng.integers(0, 14) * strength), 0.06, rng, 0.5)
    scene.deep += 0.8 * strength * canvas.dots(dots, np.full(len(dots), 0.014))


def arborizing(scene: Scene) -> None:
    """Arborizing vessels: thick trunks from the rim inwards, branching finer; often an ulcer."""
    strength = scene.present("arborizing")
    if not strength:
        return
    rng, canvas = scene.stream("arborizing"), scene.canvas
    curves, weights = [], []
    for _ in range(int(rng.integers(3, 7))):
        theta = rng.uniform(0, _TURN)
        start = scene.place(np.float64(0.95), np.float64(theta))
        inwards = math.atan2(-start[1], -start[0]) + rng.normal(0, 0.5)
        trunk = wander(start, inwards, rng.uniform(0.5, 1.3) * scene.radius, 2.2, rng)
        curves.append(trunk)
        weights.append(1.0)
        for _ in range(int(rng.integers(2, 6))):
            k = int(rng.integers(len(trunk) // 4, len(trunk) - 1))
            dx, dy = trunk[k + 1] - trunk[k]
            heading = math.atan2(dy, dx) + rng.choice([-1, 1]) * rng.uniform(0.4, 1.1)
            curves.append(wander(trunk[k], heading, rng.uniform(0.1, 0.32), 3.0, rng))
            weights.append(0.6)
    height = min(strength, 1.2) * rng.uniform(0.8, 1.3)
    scene.blood += height * canvas.lines(curves, 0.021, weights)
    white = sigmoid(3 * canvas.smooth(0.25, rng)) * scene.mask
    scene.scar += 0.16 * min(strength, 1.0) * white  # shiny white ground
    if rng.random() < 0.35:
        ulcer = canvas.dots(scene.points(1, 0.35, rng), rng.uniform(0.07, 0.14, 1), softness=0.15)
        ulcer *= sigmoid(4 * (canvas.smooth(0.05, rng) + 0.9))
        scene.blood += strength * ulcer
        scene.keratin += 0.4 * strength * ulcer
        scene.melanin += 0.35 * strength * ulcer


def lacunae(scene: Scene) -> None:
    """Lacunae: well-bounded lakes of blood, some purple, some black by thrombosis."""
    strength = scene.present("lacunae")
    if not strength:
        return
    rng, canvas = scene.stream("lacunae"), scene.canvas
    full = min(strength, 1.2)
    where = scene.points(int(rng.integers(9, 28) * full), 0.08, rng)
    lakes = canvas.dots(
        where,
        rng.uniform(0.1, 0.26, len(where)) * scene.radius,
        softness=0.13,
        ratios=rng.uniform(1.0, 1.5, len(where)),
        angles=rng.uniform(0, _TURN, len(where)),
    )
    scene.blood += full * rng.uniform(1.1, 2.2) * lakes
    purple = rng.uniform(0.5, 1.1) if rng.random() < 0.35 else rng.uniform(0, 0.2)
    scene.deep += full * purple * lakes
    if rng.random() < 0.3:
        clotted = lakes * sigmoid(6 * (canvas.smooth(0.15, rng) - 0.6))
        scene.melanin += 1.2 * full * clotted
        scene.deep += 0.9 * full * clotted


def keratin(scene: Scene) -> None:
    """Squamous cell carcinoma: a central mass of horn, and white circles around follicles."""
    strength = scene.present("keratin")
    if not strength:
        return
    rng, canvas = scene.stream("keratin"), scene.canvas
    where = rng.uniform(0.35, 0.6) - scene.rho + 0.14 * canvas.smooth(0.1, rng)
    core = sigmoid(where / 0.06) * scene.mask
    crust = strength * core * np.clip(0.7 + 0.35 * canvas.smooth(0.04, rng), 0, 1.3)
    scene.keratin += rng.uniform(0.45, 0.75) * crust
    scene.scar += rng.uniform(0.05, 0.3) * crust
    scene.melanin += rng.uniform(0.0, 0.4) * core * sigmoid(4 * canvas.smooth(0.06, rng))
    circles = scene.points(int(rng.integers(4, 14) * min(strength, 1.0)), 0.12, rng)
    ring = canvas.dots(circles, np.full(len(circles), 0.038), softness=0.2)
    ring -= 0.9 * canvas.dots(circles, np.full(len(circles), 0.021), softness=0.2)
    scene.scar += 0.45 * strength * np.clip(ring, 0, 1) * (1 - core)


def coiled(scene: Scene) -> None:
    """Coiled and hairpin vessels around the centre, and spots of blood."""
    strength = scene.present("coiled")
    if not strength:
        return
    rng, canvas = scene.stream("coiled"), scene.canvas
    curves = []
    for _ in range(int(rng.integers(10, 24) * min(strength + 0.2, 1.3))):
        start = scene.place(rng.uniform(0.6, 0.97), rng.uniform(0, _TURN))
        length = rng.uniform(0.06, 0.14)
        curves.append(wander(start, rng.uniform(0, _TURN), length, 11.0, rng, step=0.006))
    scene.blood += 0.95 * min(strength, 1.2) * canvas.lines(curves, 0.018) * scene.mask
    if rng.random() < 0.5:
        where = scene.points(int(rng.integers(1, 5)), 0.2, rng)
        spots = canvas.dots(where, rng.uniform(0.02, 0.05, len(where)), softness=0.25)
        scene.blood += 1.3 * strength * spots
        scene.melanin += 0.6 * strength * spots


# Ground before what lies in it, and surface last.
STRUCTURES = (
    brown,
    globules,
    ridges,
    cysts,
    red_areas,
    erythema,
    follicles,
    veil,
    regression,
    white_centre,
    nests,
    arborizing,
    lacunae,
    coiled,
    scale,
    keratin,
)
