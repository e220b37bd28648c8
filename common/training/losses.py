"""Losses of a classifier, one number an example, of logits (B, K) and targets (B,)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

Loss = Callable[[Tensor, Tensor], Tensor]  # (B, K) and (B,) to (B,)


def cross_entropy(logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
    """Return the cross-entropy, with a share of each label spread over all classes."""
    return F.cross_entropy(logits, targets, label_smoothing=smoothing, reduction="none")


def focal(logits: Tensor, targets: Tensor, gamma: float, smoothing: float = 0.0) -> Tensor:
    """Return (1 - p)^γ · cross-entropy, p being the target's probability.

    Examples with a confident, correct prediction count less (Lin et al. 2017, "Focal Loss for Dense
    Object Detection", ICCV, arXiv 1708.02002).
    """
    p = logits.softmax(1).gather(1, targets[:, None])[:, 0]
    # At p = 1 the power of 0 has no slope for γ < 1.
    return (1 - p).clamp(min=1e-6) ** gamma * cross_entropy(logits, targets, smoothing)


def logit_adjusted(
    logits: Tensor, targets: Tensor, counts: Tensor, tau: float, smoothing: float = 0.0
) -> Tensor:
    """Return the cross-entropy of logits + τ log π, π being the classes' shares of all images.

    A rarer class needs a larger margin. Predictions are made without the adjustment, and classes
    count alike in them (Menon et al. 2021, "Long-tail learning via logit adjustment", ICLR, arXiv
    2007.07314). A class without images has π as if it had one.
    """
    share = counts.clamp(min=1) / counts.clamp(min=1).sum()
    return cross_entropy(logits + tau * share.log(), targets, smoothing)


def of_present(loss: Loss, logits: Tensor, targets: Tensor, present: Tensor) -> Tensor:
    """Return a loss over some classes alone: the others' logits have no part in it.

    The restricted softmax of FedRS (Li and Zhan 2021, "FedRS: Federated learning with restricted
    softmax for label distribution non-IID data", KDD), with nothing of the absent classes: a site
    that has none of a class does not learn that nothing is of this class.

    Parameters
    ----------
    loss : callable
    logits, targets : Tensor
    present : (K,) Tensor of bool
        All targets are among these.
    """
    place = present.cumsum(0) - 1
    return loss(logits[:, present], place[targets])


def loss_of(
    name: str,
    labels: np.ndarray,
    classes: int,
    *,
    gamma: float = 0.0,
    tau: float = 1.0,
    smoothing: float = 0.0,
    mask: bool = False,
) -> Loss:
    """Make the loss of a training from the labels that the site has.

    Parameters
    ----------
    name : {"cross-entropy", "focal", "logit-adjusted"}
    labels : (N,) ndarray of int
    classes : int
        Of the study.
    gamma, tau, smoothing : float
    mask : bool
        Leave out the classes that the site lacks.

    Returns
    -------
    callable
        Of logits (B, K) and targets (B,), on any device, to (B,).
    """
    counts = torch.from_numpy(np.bincount(labels, minlength=classes)).float()
    present = counts > 0

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        if name == "focal":
            return focal(logits, targets, gamma, smoothing)
        if name == "logit-adjusted":
            known = (counts[present] if mask else counts).to(logits)
            return logit_adjusted(logits, targets, known, tau, smoothing)
        return cross_entropy(logits, targets, smoothing)

    if not mask:
        return loss
    return lambda logits, targets: of_present(loss, logits, targets, present.to(logits.device))


def weighted_mean(each: Tensor, weights: Tensor) -> Tensor:
    """Return Σ w · loss / B.

    Divided by the batch, not by its own weights: a batch without the rarer class would else pull
    towards the other at full strength.
    """
    return weights @ each / len(each)
