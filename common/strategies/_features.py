"""What strategies that work on features ask of a classifier."""

from __future__ import annotations

from typing import TYPE_CHECKING

from common.averages import State
from common.errors import ConfigError

if TYPE_CHECKING:
    from common.config.run_config import RunConfig


def number_of_features(weights: State) -> int:
    """Return how many features the head sees; it is a classifier's only linear layer."""
    (head,) = (tensor for tensor in weights.values() if tensor.ndim == 2)
    return head.shape[1]


def require_features(name: str, config: RunConfig) -> None:
    """Refuse a classifier whose features do not learn.

    Raises
    ------
    ConfigError
    """
    frozen = {
        "model.classifier": config.model.classifier == "gan-features",
        "model.trains": config.model.trains == "head",
    }
    for key in (key for key, is_frozen in frozen.items() if is_frozen):
        value = config.to_flower()[key]
        raise ConfigError(
            f"run config: strategy '{name}' trains features, and those of {key} '{value}' do not "
            "learn: choose another of the two"
        )
