"""A StyleGAN2-ADA training on disk: everything that going on bit for bit needs, and no code.

``gan.json`` says what it is (architecture, configuration, counters, sources, data in numbers) and
names the ``.safetensors`` with all tensors; see ``common.checkpoints.save_snapshot``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from common.checkpoints import read_description, read_snapshot, save_snapshot
from common.errors import ConfigError, DivergedError, FedscanError
from common.models.architecture import ARCHITECTURE_VERSION, Architecture
from common.models.stylegan2 import Discriminator, Generator, build, state_groups
from common.provenance import source_hash, versions
from common.site_files import plain
from common.training.gan_config import GanConfig
from common.training.gan_state import GROUPS, GanTraining, resolve_device, starting_p

if TYPE_CHECKING:
    from common.data.dataset import Dataset

NAME = "gan"
FORMAT = "fedscan StyleGAN2-ADA training, 1"  # raise the number when names of tensors change


def save_checkpoint(
    folder: str | Path,
    training: GanTraining,
    data: Dataset | None = None,
    *,
    groups: Sequence[str] = GROUPS,
) -> None:
    """Replace the folder's checkpoint: whole, or not at all if the process ends meanwhile.

    Parameters
    ----------
    folder : str or Path
    training : GanTraining
    data : Dataset, optional
        What it was trained on, to be described in numbers: nothing of it is written.
    groups : sequence of str
        By default all, to go on with. A federation's result has no site's ``private`` state.

    Raises
    ------
    DivergedError
        If a tensor is not finite; the checkpoint before stays.
    """
    state = training.export(groups)
    if bad := sorted(name for name, tensor in state.items() if not tensor.isfinite().all()):
        raise DivergedError(
            f"{bad[0]} is not finite after iteration {training.steps}: the training has diverged, "
            "and its checkpoint was not replaced. Try lower learning rates or a larger r1-gamma"
        )
    save_snapshot(
        Path(folder),
        NAME,
        state,
        {
            "format": FORMAT,
            "architecture": training.architecture.to_json(),
            "architecture_version": ARCHITECTURE_VERSION,
            "fingerprint": training.architecture.fingerprint,
            "config": training.config.to_mapping(),
            "steps": training.steps,
            "images_seen": training.images_seen,
            "p": training.p,
            "data": None if data is None else _in_numbers(data),
            "source_hash": source_hash(),
            "versions": versions(),
        },
    )


def load_checkpoint(
    folder: str | Path,
    *,
    config: GanConfig | None = None,
    device: torch.device | str | None = None,
) -> GanTraining:
    """Load a training to go on with; on a CPU with as many threads it does so bit for bit.

    Parameters
    ----------
    folder : str or Path
        The folder, or a file of the checkpoint in it.
    config : GanConfig, optional
        Go on with another configuration of the same networks. By default the checkpoint's. Where
        its ``augment`` is not adaptive, p is what it says, not the checkpoint's.
    device : optional
        By default the configuration's.

    Raises
    ------
    FedscanError
        If there is no checkpoint, it is damaged or a pickle, or its networks are not those that
        this version of fedscan, or the given configuration, would build.
    """
    folder = Path(folder)
    description, architecture = _described(folder)
    if config is None:
        try:
            if not isinstance(description.get("config"), dict):  # every key would be a default
                raise ConfigError("it is missing")
            config = GanConfig.from_mapping(description["config"])
        except ConfigError as error:
            raise FedscanError(
                f"{folder}: the checkpoint's configuration is not one of this version of fedscan "
                f"({error}). Use {_writer(description)}, or give a configuration"
            ) from error
    else:
        _require_same_networks(folder, config, architecture)
    description, state = read_snapshot(folder, NAME)
    # Any initial weights will do: all are replaced.
    training = GanTraining(config, *build(architecture, 0), resolve_device(device or config.device))
    try:
        training.load(state)
    except FedscanError as error:
        raise FedscanError(f"{folder}: {error}") from error
    if config.augment != "adaptive":
        training.p = starting_p(config)
    return training


def load_generator(folder: str | Path) -> tuple[Generator, dict[str, Any]]:
    """Load the generator's average over time, the network that makes the pictures.

    Parameters
    ----------
    folder : str or Path
        The folder, or a file of the checkpoint in it.

    Returns
    -------
    generator : Generator
        On the CPU, in float32, for evaluation only.
    description : dict
        The sidecar: ``architecture``, ``config``, ``steps``, ``images_seen``, ``data``, …

    Raises
    ------
    FedscanError
        As :func:`load_checkpoint`.
    """
    # The average's own tensors; constants, which nothing averages, are G's.
    prefix = {"parameters": "ema", "averages": "ema", "constants": "generator"}
    return _network(Path(folder), 0, prefix, ("ema.", "generator.synthesis."))


def load_discriminator(folder: str | Path) -> tuple[Discriminator, dict[str, Any]]:
    """Load the discriminator, whose features tell much about pictures.

    Parameters, returns and raises as :func:`load_generator`.
    """
    prefix = dict.fromkeys(("parameters", "averages", "constants"), "discriminator")
    return _network(Path(folder), 1, prefix, ("discriminator.",))


def _network(
    folder: Path, which: int, prefix: dict[str, str], names: tuple[str, ...]
) -> tuple[Any, dict[str, Any]]:
    _, architecture = _described(folder)
    description, state = read_snapshot(folder, NAME, names)
    network = build(architecture, 0)[which]
    wanted = {
        name: f"{prefix[group]}.{name}"
        for group, tensors in state_groups(network).items()
        for name in tensors
    }
    found = {name: state[written] for name, written in wanted.items() if written in state}
    try:
        network.load_state_dict(found, strict=True)
    except RuntimeError as error:
        raise FedscanError(
            f"{folder}: the checkpoint's {type(network).__name__.lower()} is not whole ({error}). "
            "Train anew"
        ) from error
    return network.eval().requires_grad_(False), description


def _described(folder: Path) -> tuple[dict[str, Any], Architecture]:
    """Read the sidecar, and be sure that its weights mean here what they meant to their writer."""
    description = read_description(folder, NAME)
    if description.get("format") != FORMAT:
        raise FedscanError(
            f"{folder}: {NAME}.json has format {_shown(description.get('format'))}, accepted is "
            f"{FORMAT!r}. Use {_writer(description)}, or train anew"
        )
    written = description.get("architecture")
    try:
        architecture = Architecture.from_json(written)
    except ConfigError:
        architecture = None
    if architecture is None or architecture.fingerprint != description.get("fingerprint"):
        raise FedscanError(
            f"{folder}: the checkpoint's networks are not those of this version of fedscan: "
            f"{_differences(description)}. Its weights would mean something else here. Use "
            f"{_writer(description)}, or train anew"
        )
    return description, architecture


def _differences(description: dict[str, Any]) -> str:
    """Say in what a checkpoint's architecture differs from today's."""
    found = []
    version = description.get("architecture_version")
    if version != ARCHITECTURE_VERSION:
        found.append(f"architecture version {_shown(version)} instead of {ARCHITECTURE_VERSION}")
    written = _mapping(description, "architecture")
    known = Architecture().to_json()
    if unknown := sorted(written.keys() - known.keys()):
        found.append(f"unknown here: {plain(', '.join(unknown))}")
    if missing := sorted(known.keys() - written.keys()):
        found.append(f"not in the checkpoint: {', '.join(missing)}")
    return "; ".join(found) or "the sidecar's sizes are not those that it was written with"


def _mapping(description: dict[str, Any], key: str) -> dict[str, Any]:
    """Part of a sidecar, which somebody may have edited: empty where it is no mapping."""
    part = description.get(key)
    return part if isinstance(part, dict) else {}


def _writer(description: dict[str, Any]) -> str:
    version = plain(str(_mapping(description, "versions").get("fedscan", "unknown")), 20)
    source = plain(str(description.get("source_hash", "unknown"))[:12])
    return f"the fedscan that wrote it (version {version}, sources {source})"


def _shown(value: object) -> str:
    return plain(repr(value))


def _require_same_networks(folder: Path, config: GanConfig, architecture: Architecture) -> None:
    kinds = dict(architecture.labels)
    if config.label_kinds != tuple(kinds):
        differ = [f"label-kinds {','.join(kinds)} instead of {','.join(config.label_kinds)}"]
    else:
        ours, theirs = config.architecture(kinds).to_json(), architecture.to_json()
        differ = [f"{k} {theirs[k]!r} instead of {ours[k]!r}" for k in ours if ours[k] != theirs[k]]
    if differ:
        raise FedscanError(
            f"{folder}: the checkpoint has other networks than the configuration: "
            f"{'; '.join(differ)}. Go on with the checkpoint's own, or train anew in another folder"
        )


def _in_numbers(data: Dataset) -> dict[str, Any]:
    """Describe a data set without a word of who is in it."""
    kinds = sorted({kind for row in data.conditions for kind in row})
    return {
        "slices": len(data),
        # Sites number their participants as they like.
        "participants": len(
            {
                (row.get("site", ""), one)
                for row, one in zip(data.conditions, data.persons, strict=True)
            }
        ),
        "labels": {
            kind: dict(Counter(row.get(kind, "") for row in data.conditions)) for kind in kinds
        },
    }
