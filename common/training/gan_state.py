"""All state of a StyleGAN2-ADA training, in groups that a federation treats differently."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from common.errors import ConfigError, FedscanError
from common.models.architecture import Architecture
from common.models.augment import Augmentation, Strengths
from common.models.stylegan2 import build, set_precision, state_groups
from common.seeding import derive_seed
from common.training.gan_config import GanConfig
from common.training.gan_losses import ema_beta, lazy_adam, next_p

# parameters: of G and D; what sites share.
# averages:   of w, of G over time (the EMA): linear in what they average.
# private:    Adam's moments, the mean path length, ADA's p and the signs it has counted: a site's
#             own optimization.
# constants:  noise maps: the same everywhere, never averaged (FIR filters are code, in no state).
# counters:   iterations and images seen.
GROUPS = ("parameters", "averages", "private", "constants", "counters")
MOMENTS = ("exp_avg", "exp_avg_sq", "step")  # what Adam remembers of each parameter
AUGMENT_STEPS = (  # ADA, appendix B: by the letters b, g, c, f, n and c (cutout)
    ("xflip", "rotate90", "xint"),
    ("scale", "rotate", "aniso", "xfrac"),
    ("brightness", "contrast", "lumaflip", "hue", "saturation"),
    ("imgfilter",),
    ("noise",),
    ("cutout",),
)
_NUMBERS = {"ada.p": "p", "steps": "steps", "images_seen": "images_seen"}  # kept as Python numbers


class GanTraining:
    """Both networks, the generator's average, and everything that training remembers.

    Make one with :meth:`start`, or with ``common.training.gan_checkpoint.load_checkpoint``.

    Parameters
    ----------
    config : GanConfig
    generator : Generator
        G; moved to the device.
    discriminator : Discriminator
        D; moved to the device.
    device : torch.device

    Attributes
    ----------
    ema : Generator
        Average of G over time, in float32: the network that makes the pictures.
    steps, images_seen : int
        Iterations, and real images shown to D.
    p : float
        Strength of the augmentation.
    sign_sum, sign_count : Tensor
        Scalars: signs of D(real) since p last changed, and how many.
    path_mean : Tensor
        Scalar, a: the running mean of path lengths.
    """

    def __init__(
        self,
        config: GanConfig,
        generator: nn.Module,
        discriminator: nn.Module,
        device: torch.device,
    ) -> None:
        self.config, self.device = config, device
        self.architecture: Architecture = generator.architecture
        self.generator = generator.to(device)
        self.discriminator = discriminator.to(device)
        self.ema = copy.deepcopy(self.generator).eval().requires_grad_(False)
        precision = resolve_precision(config.precision, device)
        set_precision(self.generator, precision)
        set_precision(self.discriminator, precision)
        self.augmentation = None
        if config.augment != "off":
            self.augmentation = Augmentation(augment_strengths(config.augment_steps)).to(device)

        self.generator_optimizer = _adam(
            self.generator,
            config,
            config.generator_learning_rate,
            config.path_interval if config.path_weight else None,
        )
        self.discriminator_optimizer = _adam(
            self.discriminator,
            config,
            config.discriminator_learning_rate,
            config.r1_interval if config.r1_gamma else None,
        )

        self.p = starting_p(config)
        self.sign_sum = torch.zeros((), device=device)
        self.sign_count = torch.zeros((), device=device)
        self.path_mean = torch.zeros((), device=device)
        self.steps = self.images_seen = 0

    @classmethod
    def start(
        cls,
        config: GanConfig,
        architecture: Architecture,
        *,
        seed: int | None = None,
        device: torch.device | str | None = None,
    ) -> GanTraining:
        """Begin a training with weights that the seed decides.

        Parameters
        ----------
        config : GanConfig
        architecture : Architecture
            Mostly ``config.architecture(values)``.
        seed : int, optional
            By default the configuration's.
        device : optional
            By default the configuration's.
        """
        seed = config.seed if seed is None else seed
        networks = build(architecture, derive_seed(seed, purpose="initial weights"))
        return cls(config, *networks, resolve_device(device or config.device))

    def update_average(self) -> None:
        """Move the generator's average towards G after a step of ``batch_size`` images."""
        config = self.config
        beta = ema_beta(
            config.batch_size,
            half_life=config.ema_kimg * 1000,
            rampup=config.ema_rampup,
            images_seen=self.images_seen,
        )
        with torch.no_grad():
            torch._foreach_lerp_(
                list(self.ema.parameters()), list(self.generator.parameters()), 1 - beta
            )
            self.ema.mapping.w_average.copy_(self.generator.mapping.w_average)

    def update_p(self) -> None:
        """Every ``ada_interval`` iterations let p follow the signs counted since the last time."""
        config = self.config
        if config.augment != "adaptive" or self.steps % config.ada_interval:
            return
        step = config.batch_size * config.ada_interval / (config.ada_kimg * 1000)
        mean = float(self.sign_sum / self.sign_count)
        self.p = next_p(self.p, mean, target=config.ada_target, step=step)
        self.sign_sum.zero_()
        self.sign_count.zero_()

    def export(self, groups: str | Iterable[str] = GROUPS) -> dict[str, Tensor]:
        """Return copies, on the CPU, of the state of some groups.

        Parameters
        ----------
        groups : str or iterable of str
            Of ``GROUPS``; by default all: with the configuration, the whole training.

        Returns
        -------
        dict of str to Tensor
            ``generator.…``, ``discriminator.…``, ``ema.…``, …; no two groups share a name.
        """
        return {
            name: torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor.detach())
            for group in _known(groups)
            for name, tensor in (self._live(group) | self._numbers(group)).items()
        }

    def load(self, state: Mapping[str, Tensor], groups: str | Iterable[str] = GROUPS) -> None:
        """Take over what :meth:`export` gave for the same groups; the others stay as they are.

        With the group ``constants``, the average's are those of the generator then.

        Raises
        ------
        FedscanError
            If a tensor is missing, unknown or of another shape or type. Nothing is changed then.
        """
        groups = _known(groups)
        live = {name: tensor for group in groups for name, tensor in self._live(group).items()}
        numbers = {name: value for group in groups for name, value in self._numbers(group).items()}
        if faults := _faults(state, live | numbers):
            raise FedscanError(
                f"state ({', '.join(groups)}) does not fit this training: {faults}. It must come "
                "from a training with the same architecture and the same version of fedscan"
            )
        with torch.no_grad():
            for name, tensor in live.items():
                tensor.copy_(state[name])
            if "constants" in groups:  # `export` has them once, as the generator's
                constants = state_groups(self.generator)["constants"]
                for name, tensor in state_groups(self.ema)["constants"].items():
                    tensor.copy_(constants[name])
        for name in numbers:
            setattr(self, _NUMBERS[name], state[name].item())

    def _numbers(self, group: str) -> dict[str, Tensor]:
        """Return the Python numbers of a group as tensors, float64 or int64."""
        names = {"private": ["ada.p"], "counters": ["steps", "images_seen"]}.get(group, [])
        values = {name: getattr(self, _NUMBERS[name]) for name in names}
        return {
            name: torch.tensor(value, dtype=torch.float64 if name == "ada.p" else torch.int64)
            for name, value in values.items()
        }

    def _live(self, group: str) -> dict[str, Tensor]:
        """Return the tensors of a group themselves, by name."""
        networks = {"generator": self.generator, "discriminator": self.discriminator}
        if group == "private":
            optimizers = (self.generator_optimizer, self.discriminator_optimizer)
            live = {
                "ada.sign_sum": self.sign_sum,
                "ada.sign_count": self.sign_count,
                "path_length_mean": self.path_mean,
            }
            for (prefix, network), optimizer in zip(networks.items(), optimizers, strict=True):
                for name, parameter in network.named_parameters():
                    for moment in MOMENTS:
                        live[f"{prefix}.{name}/{moment}"] = optimizer.state[parameter][moment]
            return live
        if group == "counters":
            return {}
        live = {
            f"{prefix}.{name}": tensor
            for prefix, network in networks.items()
            for name, tensor in state_groups(network)[group].items()
        }
        if group == "averages":
            average = state_groups(self.ema)
            for name, tensor in (average["parameters"] | average["averages"]).items():
                live[f"ema.{name}"] = tensor
        return live


def augment_strengths(steps: str) -> Strengths:
    """Return the strengths of ADA's pipeline with the steps of some letters on, all at 1.

    Parameters
    ----------
    steps : str
        ``"bgc"`` and the like (``GanConfig.augment_steps``), the paper's letters in its order.
    """
    on = [name for _, names in zip(steps, AUGMENT_STEPS, strict=False) for name in names]
    return Strengths(**dict.fromkeys(on, 1.0))


def starting_p(config: GanConfig) -> float:
    """Return the augmentation's probability with which a training begins."""
    return 0.0 if config.augment == "off" else config.augment_p


def resolve_device(name: torch.device | str) -> torch.device:
    """Turn ``"auto"`` into a GPU where there is one, else the CPU.

    Raises
    ------
    ConfigError
        If a GPU is asked for and PyTorch sees none.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "device = 'cuda': PyTorch sees no GPU here. Accepted are 'cpu' and 'auto'"
        )
    return device


def resolve_precision(name: str, device: torch.device) -> str:
    """Turn ``"auto"`` into float32 on CPUs, and on GPUs into the half precision that they have."""
    if name != "auto":
        return name
    if device.type != "cuda":
        return "float32"
    return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"


def _adam(
    network: nn.Module, config: GanConfig, learning_rate: float, interval: int | None
) -> torch.optim.Adam:
    """Make Adam with moments of zero from the start, so that its state always has all names."""
    lr, betas = lazy_adam(learning_rate, (config.beta1, config.beta2), interval)
    parameters = list(network.parameters())
    optimizer = torch.optim.Adam(parameters, lr=lr, betas=betas, eps=1e-8, fused=True)
    for parameter in parameters:
        optimizer.state[parameter] = {
            "step": torch.zeros((), device=parameter.device),
            "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
            "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
        }
    return optimizer


def _known(groups: str | Iterable[str]) -> tuple[str, ...]:
    groups = (groups,) if isinstance(groups, str) else tuple(groups)
    if unknown := [group for group in groups if group not in GROUPS]:
        raise ValueError(f"unknown group {unknown[0]!r}: accepted are {', '.join(GROUPS)}")
    return groups


def _faults(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    """Say what is wrong with a state, the first few of each kind; nothing where it fits."""
    unlike = [
        f"{name} is {_shape(state[name])} instead of {_shape(tensor)}"
        for name, tensor in wanted.items()
        if name in state
        and (state[name].shape != tensor.shape or state[name].dtype != tensor.dtype)
    ]
    found = {
        "missing": sorted(wanted.keys() - state.keys()),
        "unknown": sorted(state.keys() - wanted.keys()),
        "unlike": unlike,
    }
    return "; ".join(
        f"{kind}: {', '.join(names[:3])}" + (f" and {len(names) - 3} more" if names[3:] else "")
        for kind, names in found.items()
        if names
    )


def _shape(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
