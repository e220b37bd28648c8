"""All that a classifier's training remembers from one step to the next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from common.training.hooks import Hooks
from common.training.progress import Parts

MOMENTS = ("exp_avg", "exp_avg_sq", "step")  # what AdamW remembers of each parameter


@dataclass
class ClassifierTraining:
    """A training, whose batches follow from a seed and the step.

    Parameters
    ----------
    model : nn.Module
        On the device.
    optimizer : torch.optim.Optimizer
        AdamW.
    hooks : Hooks
        The strategy's, which have seen the model before the round.
    augmentation : torch.Generator
    device : torch.device
    losses : list of Tensor
        One a step, scalars on the device.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    hooks: Hooks
    augmentation: torch.Generator
    device: torch.device
    losses: list[Tensor] = field(default_factory=list)

    def export(self) -> Parts:
        """Return all of it."""
        random = {"augmentation": self.augmentation.get_state(), "cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state(self.device)
        return {
            "model": self.model.state_dict(),
            "moments": self.moments(),
            "hooks": self.hooks.export(),
            "losses": {"each": torch.stack(self.losses)},
            "random": random,
        }

    def load(self, parts: Parts) -> None:
        """Take over what :meth:`export` gave after at least one step, in this thread's draws too.

        On another kind of device PyTorch's draws there begin anew.
        """
        self.model.load_state_dict(parts["model"])
        self.load_moments(parts.get("moments", {}))
        self.hooks.load(parts.get("hooks", {}))
        self.losses = list(parts["losses"]["each"].to(self.device))
        random = parts["random"]
        self.augmentation.set_state(random["augmentation"])
        torch.set_rng_state(random["cpu"])
        if self.device.type == "cuda" and "cuda" in random:
            torch.cuda.set_rng_state(random["cuda"], self.device)

    def moments(self) -> dict[str, Tensor]:
        """Return the optimizer's moments, by parameter and kind."""
        return {
            f"{name}/{moment}": self.optimizer.state[parameter][moment].detach().cpu()
            for name, parameter in self.model.named_parameters()
            for moment in MOMENTS
            if parameter in self.optimizer.state
        }

    def load_moments(self, moments: Mapping[str, Tensor]) -> None:
        """Take over moments; a parameter without any begins anew."""
        for name, parameter in self.model.named_parameters():
            if f"{name}/step" in moments:
                self.optimizer.state[parameter] = {
                    # The count of steps stays on the CPU, where AdamW keeps it.
                    moment: moments[f"{name}/{moment}"].clone()
                    if moment == "step"
                    else moments[f"{name}/{moment}"].to(parameter.device, copy=True)
                    for moment in MOMENTS
                }
