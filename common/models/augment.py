"""Adaptive discriminator augmentation (ADA): differentiable, one set of random changes an image.

A discriminator that sees few images learns them by heart. ADA shows it changed images only, real
and generated alike; while each change happens with a probability well below one, the generator
still learns the unchanged distribution (Karras et al., arXiv 2006.06676, section 2). The steps,
their order and their ranges are those of appendix B there: pixel blitting, general geometric
transformations, colour, and as options filtering in frequency bands, noise and cutout.

Randomness lives in `draw`, mathematics in `apply`: a `Draw` can be kept, replayed and cut.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from common.errors import ConfigError
from common.models.augment_steps import cut_out, filter_octaves, like, recolour, warp

# Power of natural images in four octaves, lowest first: 1/f, appendix B's λ.
EXPECTED_POWER = (10 / 13, 1 / 13, 1 / 13, 1 / 13)

# Every event, and the strength by which p is multiplied to get its probability.
EVENTS = {
    **{name: name for name in ("xflip", "rotate90", "xint", "scale")},
    **{"rotate_before": "rotate", "aniso": "aniso", "rotate_after": "rotate", "xfrac": "xfrac"},
    **{name: name for name in ("brightness", "contrast", "lumaflip", "hue", "saturation")},
    **{f"band_{octave}": "imgfilter" for octave in range(len(EXPECTED_POWER))},
    **{"noise": "noise", "cutout": "cutout"},
}
# Every random quantity: one for each event, but two for what has a direction in the plane.
PLANAR = ("xint", "xfrac", "cutout")
QUANTITIES = tuple(
    f"{event}{axis}" for event in EVENTS for axis in (("_x", "_y") if event in PLANAR else ("",))
)


@dataclass(frozen=True)
class Strengths:
    """Which steps are on, and how far each goes. Defaults of ranges are the paper's.

    The first fifteen are multipliers of p (0: the step is off); all are finite and at least 0.

    Raises
    ------
    ConfigError
        If a value is negative or not finite, or the cutout is larger than the image.
    """

    xflip: float = 0.0  # mirror left and right, in half of the events
    rotate90: float = 0.0  # turn by 0, 1, 2 or 3 quarters
    xint: float = 0.0  # shift by whole pixels
    scale: float = 0.0  # isotropic scaling
    rotate: float = 0.0  # rotation by any angle, before or after the anisotropic scaling
    aniso: float = 0.0  # anisotropic scaling: s along x, 1/s along y
    xfrac: float = 0.0  # shift by fractions of a pixel
    brightness: float = 0.0  # add a constant
    contrast: float = 0.0  # multiply by a constant
    lumaflip: float = 0.0  # mirror the mean over channels at 0, in half of the events
    hue: float = 0.0  # rotate colours about the grey axis; three channels only
    saturation: float = 0.0  # scale the differences between channels; none in a grey image
    imgfilter: float = 0.0  # amplify and attenuate octaves of spatial frequency
    noise: float = 0.0  # add white noise
    cutout: float = 0.0  # set a square to 0
    xint_max: float = 0.125  # largest shift, fraction of the image's side
    scale_std: float = 0.2  # SD of log2 of the factor
    rotate_max: float = 1.0  # largest angle, fraction of 180°
    aniso_std: float = 0.2  # SD of log2 of the factor
    xfrac_std: float = 0.125  # SD of the shift, fraction of the image's side
    brightness_std: float = 0.2  # SD of the constant; images span [-1, 1]
    contrast_std: float = 0.5  # SD of log2 of the factor
    hue_max: float = 1.0  # largest angle, fraction of 180°
    saturation_std: float = 1.0  # SD of log2 of the factor
    imgfilter_std: float = 1.0  # SD of log2 of an octave's gain
    noise_std: float = 0.1  # scale of the half-normal distribution of the noise's SD
    cutout_size: float = 0.5  # side of the square, fraction of the image's side

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not (math.isfinite(value) and value >= 0):
                raise ConfigError(
                    f"augmentation {field.name}={value}: give a number of at least 0",
                    public=f"augmentation {field.name}: give a number of at least 0",
                )
        if self.cutout_size > 1:
            raise ConfigError(
                f"augmentation cutout_size={self.cutout_size}: give at most 1",
                public="augmentation cutout_size: give at most 1",
            )


BGC = Strengths(**dict.fromkeys([field.name for field in fields(Strengths)][:12], 1.0))
"""Blitting, geometry and colour: the paper's choice (section 3)."""


@dataclass(frozen=True)
class Draw:
    """All randomness of one call, on the CPU: `apply` with the same draw does the same.

    Quantities are percentiles of their distributions, whatever the ranges are.
    """

    events: Tensor  # (N, len(EVENTS)) bool: does it happen?
    percentiles: Tensor  # (N, len(QUANTITIES)) float64 in (0, 1)
    noise: Tensor | None = None  # (N, C, R, R) standard normal; None where noise is off

    def happens(self, event: str) -> Tensor:
        """(N,) bool."""
        return self.events[:, tuple(EVENTS).index(event)]

    def happens_at_all(self, event: str) -> bool:
        """Whether it happens to any image; a step that happens to none changes nothing."""
        return bool(self.happens(event).any())

    def uniform(self, quantity: str) -> Tensor:
        """(N,) float64 from U(0, 1)."""
        return self.percentiles[:, QUANTITIES.index(quantity)]

    def signed(self, quantity: str) -> Tensor:
        """(N,) float64 from U(-1, 1)."""
        return 2 * self.uniform(quantity) - 1

    def choice(self, quantity: str, count: int) -> Tensor:
        """(N,) float64, whole numbers from 0 to count - 1."""
        return (self.uniform(quantity) * count).floor()

    def normal(self, quantity: str) -> Tensor:
        """(N,) float64 from N(0, 1)."""
        return torch.special.ndtri(self.uniform(quantity))

    def __getitem__(self, images: slice) -> Draw:
        """The same for some of the images."""
        noise = None if self.noise is None else self.noise[images]
        return Draw(self.events[images], self.percentiles[images], noise)


def draw(
    strengths: Strengths, shape: torch.Size, p: float | Tensor, generator: torch.Generator | None
) -> Draw:
    """Draw all that is random for images of this shape (N, C, R, R).

    Each event happens with probability strength · p, apart from the two rotations: so that one or
    both happen with that probability, each has 1 - √(1 - strength · p). A generator's numbers are
    used up alike whatever p is and whichever steps are on, apart from the noise, which comes last.

    Raises
    ------
    ValueError
        If p is not in [0, 1].
    """
    p = float(p)
    if not 0 <= p <= 1:
        raise ValueError(f"p={p}: a probability lies in 0 to 1")
    probabilities = []
    for event, strength in EVENTS.items():
        probability = min(getattr(strengths, strength) * p, 1.0)
        rotates = event.startswith("rotate_")
        probabilities.append(1 - math.sqrt(1 - probability) if rotates else probability)
    columns = len(EVENTS) + len(QUANTITIES)
    table = torch.rand(shape[0], columns, generator=generator, dtype=torch.float64)
    events = table[:, : len(EVENTS)] < torch.tensor(probabilities, dtype=torch.float64)
    noise = torch.randn(shape, generator=generator) if strengths.noise > 0 else None
    # A normal quantity has no percentile 0.
    return Draw(events, table[:, len(EVENTS) :].clamp(min=2.0**-53), noise)


def draw_at(strengths: Strengths, shape: torch.Size, percentile: float) -> Draw:
    """Draw in which every step that is on happens to every image, at this percentile in (0, 1).

    So is every pixel's noise.
    """
    on = torch.tensor([getattr(strengths, strength) > 0 for strength in EVENTS.values()])
    table = torch.full((shape[0], len(QUANTITIES)), percentile, dtype=torch.float64)
    noise = torch.special.ndtri(torch.full(shape, percentile)) if strengths.noise > 0 else None
    return Draw(on.expand(shape[0], -1), table, noise)


def apply(images: Tensor, drawn: Draw, strengths: Strengths) -> Tensor:
    """Augment images as drawn: a pure function, differentiable in `images` as often as one likes.

    Parameters
    ----------
    images : Tensor
        (N, C, R, R). Half precision is computed in float32 and handed back in its own dtype.

    Raises
    ------
    ValueError
        If the images are not square.
    """
    n, channels, size, width = images.shape
    if size != width:
        raise ValueError(f"images of {size} x {width} pixels: augmentation takes square ones")
    x = images if images.dtype == torch.float64 else images.float()
    with torch.autocast(images.device.type, enabled=False):
        x = warp(x, inverse_transform(drawn, strengths, size))
        x = recolour(x, colour_matrix(drawn, strengths, channels))
        x = filter_octaves(x, octave_gains(drawn, strengths))
        if drawn.noise is not None and drawn.happens_at_all("noise"):
            # The half-normal distribution's quantile function, by the normal's.
            sd = torch.special.ndtri((1 + drawn.uniform("noise")) / 2) * strengths.noise_std
            sd = torch.where(drawn.happens("noise"), sd, 0.0)
            x = x + like(sd.view(n, 1, 1, 1) * drawn.noise, x)
        if drawn.happens_at_all("cutout"):
            centres = torch.stack([drawn.uniform(f"cutout_{axis}") for axis in "xy"], 1)
            centres[~drawn.happens("cutout")] = math.inf
            x = cut_out(x, centres, strengths.cutout_size)
    return x.to(images.dtype)


class Augmentation(nn.Module):
    """ADA's pipeline as a module. It has no state: constants are made once a size and device.

    Parameters
    ----------
    strengths : Strengths
        Steps and ranges, for instance `BGC`.
    """

    def __init__(self, strengths: Strengths = BGC) -> None:
        super().__init__()
        self.strengths = strengths

    def forward(
        self, images: Tensor, p: float | Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Augment images (N, C, R, R) with probability p in [0, 1].

        Every draw is from `generator`, which lives on the CPU; None is PyTorch's default one.
        """
        return apply(images, draw(self.strengths, images.shape, p, generator), self.strengths)


def inverse_transform(drawn: Draw, strengths: Strengths, size: int) -> Tensor:
    """Where each pixel of the output comes from: appendix B's G⁻¹, in pixels from the centre.

    Returns
    -------
    Tensor
        (N, 2, 3) float64 on the CPU: (x, y) of the input are this times (x, y, 1) of the output;
        x points right, y down. Untouched images have the identity, bit for bit.
    """
    n = len(drawn.events)
    one, zero = torch.ones(n, dtype=torch.float64), torch.zeros(n, dtype=torch.float64)
    inverse = _matrix([[one, zero, zero], [zero, one, zero], [zero, zero, one]])

    def then(event: str, *rows: list[Tensor]) -> None:
        # G ← T · G, so G⁻¹ ← G⁻¹ · T⁻¹; `rows` are T⁻¹'s first two.
        nonlocal inverse
        changed = inverse @ _matrix([*rows, [zero, zero, one]])
        inverse = torch.where(drawn.happens(event)[:, None, None], changed, inverse)

    def shift(event: str, x: Tensor, y: Tensor) -> None:
        then(event, [one, zero, -x], [zero, one, -y])

    def turn(event: str) -> None:
        angle = drawn.signed(event) * (math.pi * strengths.rotate_max)
        then(event, [angle.cos(), -angle.sin(), zero], [angle.sin(), angle.cos(), zero])

    on = drawn.happens_at_all
    if on("xflip"):
        then("xflip", [1 - 2 * drawn.choice("xflip", 2), zero, zero], [zero, one, zero])
    if on("rotate90"):
        # Quarters by a table: the cosine of a rounded π/2 is not 0.
        quarters = drawn.choice("rotate90", 4).long()
        cos = torch.tensor([1.0, 0.0, -1.0, 0.0], dtype=torch.float64)
        cos, sin = cos[quarters], cos[quarters - 1]
        then("rotate90", [cos, -sin, zero], [sin, cos, zero])
    if on("xint"):
        limit = strengths.xint_max * size
        shift("xint", *((drawn.signed(f"xint_{axis}") * limit).round() for axis in "xy"))
    if on("scale"):
        factor = torch.exp2(-drawn.normal("scale") * strengths.scale_std)
        then("scale", [factor, zero, zero], [zero, factor, zero])
    if on("rotate_before"):
        turn("rotate_before")
    if on("aniso"):
        factor = torch.exp2(-drawn.normal("aniso") * strengths.aniso_std)
        then("aniso", [factor, zero, zero], [zero, 1 / factor, zero])
    if on("rotate_after"):
        turn("rotate_after")
    if on("xfrac"):
        sd = strengths.xfrac_std * size
        shift("xfrac", *(drawn.normal(f"xfrac_{axis}") * sd for axis in "xy"))
    return inverse[:, :2]


def colour_matrix(drawn: Draw, strengths: Strengths, channels: int) -> Tensor:
    """Affine map of a pixel's channels: appendix B's C, for any number of channels.

    The paper has three. Its formulas in terms of the luma axis v = (1, …, 1) / √C hold in any
    number of dimensions: with one channel the luma flip changes the sign and saturation nothing;
    with two or four the luma flip mirrors the mean over channels and keeps their differences, and
    saturation scales these. Only in three dimensions is a rotation about an axis given by one
    angle: without three channels there is no hue.

    Returns
    -------
    Tensor
        (N, C, C + 1) float64 on the CPU, the last column is added.
    """
    n = len(drawn.events)
    matrix = torch.eye(channels, channels + 1, dtype=torch.float64).repeat(n, 1, 1)
    luma = torch.full((channels, channels), 1 / channels, dtype=torch.float64)  # v vᵀ
    rest = torch.eye(channels, dtype=torch.float64) - luma

    def chosen(event: str, value: Tensor, otherwise: float) -> Tensor:
        return torch.where(drawn.happens(event), value, otherwise)[:, None, None]

    on = drawn.happens_at_all
    if on("brightness"):
        add = chosen("brightness", drawn.normal("brightness") * strengths.brightness_std, 0.0)
        matrix[:, :, -1:] += add
    if on("contrast"):
        factor = torch.exp2(drawn.normal("contrast") * strengths.contrast_std)
        matrix = matrix * chosen("contrast", factor, 1.0)
    if on("lumaflip"):
        flip = chosen("lumaflip", drawn.choice("lumaflip", 2), 0.0)
        matrix = matrix - 2 * flip * (luma @ matrix)
    if channels == 3 and on("hue"):
        angle = chosen("hue", drawn.signed("hue") * (math.pi * strengths.hue_max), 0.0)
        cross = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]], dtype=torch.float64)
        matrix = (luma + angle.cos() * rest + angle.sin() / math.sqrt(3) * cross) @ matrix
    if channels > 1 and on("saturation"):
        factor = torch.exp2(drawn.normal("saturation") * strengths.saturation_std)
        matrix = (luma + chosen("saturation", factor, 1.0) * rest) @ matrix
    return matrix


def octave_gains(drawn: Draw, strengths: Strengths) -> Tensor:
    """Gain of each octave: each is drawn in turn, and the expected power restored after each.

    Returns
    -------
    Tensor
        (N, 4) float64 on the CPU, the lowest octave first.
    """
    power = torch.tensor(EXPECTED_POWER, dtype=torch.float64)
    gains = torch.ones(len(drawn.events), len(power), dtype=torch.float64)
    for octave in range(len(power)):
        event = f"band_{octave}"
        if drawn.happens_at_all(event):
            one = torch.ones_like(gains)
            one[:, octave] = torch.exp2(drawn.normal(event) * strengths.imgfilter_std)
            one = one / (one.square() @ power).sqrt().unsqueeze(1)
            gains = torch.where(drawn.happens(event).unsqueeze(1), gains * one, gains)
    return gains


def _matrix(rows: list[list[Tensor]]) -> Tensor:
    """(N, len(rows), len(rows[0])) of (N,) each."""
    return torch.stack([torch.stack(row, -1) for row in rows], -2)
