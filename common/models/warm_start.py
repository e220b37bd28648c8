"""A classifier begins with the weights of another one: transfer learning.

The body is taken over whole. Of the head those classes are taken over that the other model's study
has by the same names; the others begin as the seed made them. A model of a personal strategy lacks
what its sites have kept, such as normalizations: that, too, is as the seed made it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.checkpoints import PICKLES, read_model
from common.errors import ConfigError, FedscanError
from common.models.parts import HEAD, parts_of

if TYPE_CHECKING:
    from torch import Tensor, nn

    from common.config.run_config import RunConfig

FILES = ".safetensors"  # how the name of a pretrained network's file ends


def is_file(path: str) -> bool:
    """Tell whether a path is said to be a pretrained network's file, not a folder of fedscan's."""
    return path.endswith(FILES)


def check_start(config: RunConfig) -> None:
    """Refuse keys of a beginning that have no effect, or that the classifier does not have.

    Raises
    ------
    ConfigError
    """
    name, start = config.model.classifier, config.model.warm_start
    of_pictures = config.read_study().images.view == "picture"
    able = of_pictures and name.startswith("efficientnet-")
    if is_file(start) and not able:
        raise ConfigError(
            f"model.warm-start names a file, {FILES}, which is for model.classifier "
            "efficientnet-b0 or efficientnet-b2 of pictures. For any classifier: the folder of a "
            "run that has trained it"
        )
    if config.model.normalization != "auto" and not able:
        raise ConfigError(
            f"model.normalization has no effect with classifier '{name}'"
            f"{'' if of_pictures else ' of volumes'}: leave it out"
        )
    if config.model.gan_checkpoint and name != "gan-features":
        raise ConfigError(
            f"model.gan-checkpoint has no effect with classifier '{name}': set it empty, or "
            "model.classifier to 'gan-features'"
        )
    if config.model.gan_checkpoint and start:
        raise ConfigError("model.gan-checkpoint and model.warm-start: set one of them")


def begin_with(model: nn.Module, config: RunConfig) -> list[str]:
    """Take over the weights of ``model.warm-start``, in place.

    Parameters
    ----------
    model : nn.Module
        As the run's seed has made it.
    config : RunConfig
        The run's, which the weights must fit. Its ``model.warm-start`` is the folder of a run or of
        a model; or a pretrained EfficientNet's file, whose name ends in :data:`FILES`.

    Returns
    -------
    list of str
        What was not taken over, for the log.

    Raises
    ------
    ConfigError
        There are no such weights, they cannot be read, or are of another network.
    """
    path = config.model.warm_start
    if is_file(path):
        from common.models.pretrained import load_pretrained

        taken = load_pretrained(model, Path(path))
        return [] if taken else [f"{_begun(path)} the head begins anew, since its classes differ"]
    return _begin_with_run(model, Path(path), config)


def _begun(path: object) -> str:
    return f"Warm start from {path}:"


def _begin_with_run(model: nn.Module, folder: Path, config: RunConfig) -> list[str]:
    try:
        description, given = read_model(folder)
    except FedscanError as error:
        hint = ""
        if folder.suffix.lower() not in PICKLES and folder.is_file():
            hint = f"; a pretrained network's file ends in {FILES}, a model of fedscan is a folder"
        raise ConfigError(f"model.warm-start: {error}{hint}") from None
    _require_same_network(description, folder, config)
    whole = model.state_dict()
    state = {name: one for name, one in whole.items() if one.is_floating_point()}
    head, notes = _head(given, model, description, folder, config)
    given = {**given, **head}
    missing = [name for name in state if name not in given]
    if strange := sorted(given.keys() - state.keys()):
        raise _unlike(folder, f"it holds {strange[0][:80]!r}, which this network does not have")
    kept = description.get("at-sites")
    if lost := [name for name in missing if not isinstance(kept, list) or name not in kept]:
        raise _unlike(folder, f"it lacks {lost[0]}")
    for name, tensor in given.items():
        if tensor.shape != state[name].shape:
            raise _unlike(
                folder,
                f"{name} has the shape {tuple(tensor.shape)}, and {tuple(state[name].shape)} is "
                "needed",
            )
        if not tensor.is_floating_point() or not bool(tensor.isfinite().all()):
            raise _unlike(folder, f"{name} holds what is no finite weight")
    model.load_state_dict({**whole, **{name: one.float() for name, one in given.items()}})
    if missing:
        notes.append(
            f"{len(missing)} tensors begin anew, such as {missing[0]}: the sites of that run have "
            "kept theirs"
        )
    size = description.get("image_size")
    if isinstance(size, int) and size != config.data.size:
        notes.append(
            f"its images had {size} pixels or voxels a side, and these have {config.data.size}"
        )
    return [f"{_begun(folder)} {note}" for note in notes]


def _require_same_network(description: dict[str, Any], folder: Path, config: RunConfig) -> None:
    """Refuse a model that is another by what is said of it."""
    study, pictures = config.read_study(), config.read_study().images.view == "picture"
    ours = {
        "task": config.task,
        "classifier": config.model.classifier,
        "channels": study.images.channels,
        "pretrained": has_frozen_norms(config),
    }
    remedies = {
        "classifier": "Set model.classifier",
        "channels": "Choose a model of images with as many channels",
        "pretrained": "Set model.normalization: frozen is 'pretrained'",
    }
    for key, value in ours.items():
        theirs = description.get(key, value)
        if theirs != value and (pictures or key != "pretrained"):
            raise ConfigError(
                f"model.warm-start: {folder} holds a model with {key} {str(theirs)[:80]!r}, and "
                f"the run has {value!r}. {remedies.get(key, 'Choose a classifier')}"
            )


def has_frozen_norms(config: RunConfig) -> bool:
    """Tell whether a picture's EfficientNet has the frozen BatchNorms of pretrained networks."""
    if config.model.normalization == "auto":
        return is_file(config.model.warm_start)
    return config.model.normalization == "frozen"


def _head(
    given: Mapping[str, Tensor],
    model: nn.Module,
    description: Mapping[str, Any],
    folder: Path,
    config: RunConfig,
) -> tuple[dict[str, Tensor], list[str]]:
    """Return the head, each row of which is of one class, and what of it was not taken over."""
    theirs, classes = description.get("classes"), config.read_study().label.classes.names
    if not isinstance(theirs, list):
        raise _unlike(folder, "it does not say which classes it tells apart")
    rows = {k: theirs.index(name) for k, name in enumerate(classes) if name in theirs}
    found = {}
    state = model.state_dict()
    for name in (name for name, part in parts_of(model).items() if part == HEAD and name in given):
        old, new = given[name], state[name].clone()
        if tuple(old.shape) != (needed := (len(theirs), *new.shape[1:])):
            raise _unlike(
                folder, f"{name} has the shape {tuple(old.shape)}, and {needed} is needed"
            )
        new[list(rows)] = old[list(rows.values())].to(new.dtype)
        found[name] = new
    anew = [name for k, name in enumerate(classes) if k not in rows]
    if not found or not anew:
        return found, []
    if not rows:
        return found, ["the head begins anew, since no class has a name of its classes"]
    return found, [f"the head begins anew for {', '.join(anew)}, which it does not know"]


def _unlike(folder: Path, problem: str) -> ConfigError:
    return ConfigError(
        f"model.warm-start: the model in {folder} is of another network: {problem}. Choose one of "
        "the same classifier, with the same settings of group model"
    )
