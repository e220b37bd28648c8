"""Where a strategy may step into a site's training, without knowing how the task trains."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from torch import Tensor, nn

Arrays = dict[str, "Tensor"]


@dataclass(frozen=True)
class Batch:
    """A batch of a classifier's training, on the device of the training.

    Parameters
    ----------
    images : Tensor
        (B, …), augmented.
    targets : (B,) Tensor of int
        −1 of an image without a label.
    features : (B, F) Tensor
        What the last linear layer sees, with its gradient.
    loss : Tensor
        The training's own loss, a scalar; 0, with no gradient, where no image has a label.
    criterion : callable
        The training's loss of logits (B, K) for these targets, of the images that have a label.
    """

    images: Tensor
    targets: Tensor
    features: Tensor
    loss: Tensor
    criterion: Callable[[Tensor], Tensor]


class Hooks:
    """What happens around and in one round of a site's training; by default nothing.

    One object lives for one round of one site, so it may keep what it needs in attributes. Those
    that change from batch to batch are named, so that an interrupted round can go on.
    """

    # Attributes that batches change: numbers, and tensors by name, which are there before a batch.
    changing: ClassVar[tuple[str, ...]] = ()

    def before_round(self, model: nn.Module) -> None:
        """See the model, on the device of the training, before the first optimizer step."""

    def loss(self, model: nn.Module, batch: Batch | None) -> Tensor | None:
        """Return a scalar that is added to the loss of a batch; None adds nothing.

        Where people have differential privacy, ``batch`` is None, and the scalar is of weights.
        """
        del model, batch
        return None

    def gradient(self, model: nn.Module) -> None:
        """Change the gradients of a batch in place, between ``backward`` and the step.

        A parameter whose gradient is None is left alone by the step.
        """

    def after_round(self, trained: Mapping[str, Tensor]) -> tuple[Arrays, Arrays]:
        """Say what beside the weights goes to the server, and what stays for the next round.

        Parameters
        ----------
        trained : mapping of str to Tensor
            All parameters after the round, on the CPU.

        Returns
        -------
        sent : dict of str to Tensor
            Values for the strategy's further arrays: all of those that came with the order.
        private : dict of str to Tensor
            Kept at the site, and given to the next round's hooks.
        """
        del trained
        return {}, {}

    def export(self) -> Arrays:
        """Return what batches have changed so far."""
        import numpy as np
        import torch

        found = {}
        for attribute in self.changing:
            value = getattr(self, attribute)
            if isinstance(value, dict):
                found |= {f"{attribute}/{name}": tensor.detach() for name, tensor in value.items()}
            else:
                found[attribute] = torch.from_numpy(np.array(value))
        return found

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over what :meth:`export` gave, after :meth:`before_round`."""
        for attribute in self.changing:
            value = getattr(self, attribute)
            if isinstance(value, dict):
                for name, tensor in value.items():
                    tensor.detach().copy_(state[f"{attribute}/{name}"])
            else:
                setattr(self, attribute, state[attribute].item())


class Held(Hooks):
    """Leaves some parameters as they are.

    Parameters
    ----------
    names : collection of str
    """

    def __init__(self, names: Collection[str]) -> None:
        self.names = names

    def gradient(self, model: nn.Module) -> None:
        """Take the gradients of these away."""
        hold(model, self.names)


def hold(model: nn.Module, names: Collection[str]) -> None:
    """Take gradients away, so that the next step leaves these parameters as they are."""
    for name, parameter in model.named_parameters():
        if name in names:
            parameter.grad = None
