"""Updates shortened to a norm, as they are encoded (McMahan et al. 2018, arXiv 1710.06963)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

import torch

from common.transport import SCALE, decode_update

if TYPE_CHECKING:
    from torch import Tensor

    from common.transport import Encoding


def clipped(
    message: Mapping[str, Tensor],
    reference: Mapping[str, Tensor],
    most: float,
    encoding: Encoding,
    apart: Collection[str] = (),
) -> dict[str, Tensor]:
    """Shorten an update to a Euclidean norm, over all of its weights together.

    Parameters
    ----------
    message : mapping of str to Tensor
        From :func:`encode_update`.
    reference : mapping of str to Tensor
        As in :func:`decode_update`.
    most : float
        Above 0.
    encoding : {"float32", "float16", "int8"}
    apart : collection of str
        Names of what is no weight: it stays as it is and does not count.

    Returns
    -------
    dict of str to Tensor
        Encoded alike: ``message`` itself where it is no longer than that. What float16 rounds away
        may leave it longer by 2^-11 of itself.

    Raises
    ------
    FedscanError
        As :func:`decode_update`.
    """
    whole = decode_update(message, reference, encoding)
    moved = {n: whole[n].double() - reference[n].double() for n in whole if n not in apart}
    norm = float(torch.stack([tensor.norm() for tensor in moved.values()]).norm())
    if norm <= most:
        return dict(message)
    shorter = dict(message)
    for name, difference in moved.items():
        wanted = most / norm * difference
        if encoding == "float32":
            shorter[name] = (reference[name].double() + wanted).float()
        elif encoding == "float16":
            shorter[name] = wanted.half()
        else:
            shorter[name + SCALE] = most / norm * message[name + SCALE]
    return shorter
