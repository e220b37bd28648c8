"""How weights are encoded for a message: what travels, what is rounded, where the error stays.

Every round the server broadcasts weights W and each site sends back what its training made of
them; R is what a site makes of the broadcast and starts from. An encoding says how many bits that
takes:

=========  ================================  ================================================
encoding   down (server to site)             up (site to server)
=========  ================================  ================================================
float32    W, which is R                     the trained weights T
float16    W rounded to float16, which is R  T - R rounded to float16, with error feedback
int8       W less the R of the round before  T - R, in the same way
           in int8, a scale a tensor, with
           error feedback; first as float16
=========  ================================  ================================================

A difference is a hundred to a thousand times smaller than the weights, so it bears a rounding
that would ruin the weights themselves.

**Up**, a site adds what earlier rounds rounded away before it rounds again, and keeps the new
remainder e to itself (error feedback: Seide et al. 2014, "1-bit stochastic gradient descent";
Karimireddy et al. 2019, arXiv 1901.09847)::

    p_t = T_t - R_t + e_{t-1},    d_t = Q(p_t),    e_t = p_t - d_t

so that the sum of all d is the sum of all T - R less the one remainder e_t, however many rounds
there were.

**Down**, in int8, the server sends what W has moved away from the R of the round before. It and all
sites hold that R, bit for bit, since all add the same decoded numbers to it::

    D_t = Q(W_t - R_{t-1}),    R_t = R_{t-1} + D_t

What Q rounds away is W_t - R_t, and thereby in the next difference: this is error feedback whose
remainder nobody needs to keep. The first R is W in float16: half the bytes of float32, and what is
rounded away is owed like any other remainder, and sent with the second round. A site without the R
of the round before, which was away then, gets R itself in float32. A model that is only judged is
no W of a round and has no R before it: it goes down as in float16.

Either way the rounding on the way down does not accumulate, provided that the server keeps W in
float32 and adds the site's difference to *that*: ``W <- W + d``. The site's T - R was taken from
the R that it holds, which is the server's bit for bit; so the rounding W - R is in no difference,
and a round starts at most half a step beside W. Were d added to R instead, W - R would be thrown
away each round, and a weight that moves by less than half a step a round (in float16 2^-12 of
itself, at worst) would never move at all.

float32 needs none of this: what travels is what was trained, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, get_args

import torch
from torch import Tensor

from common.errors import ConfigError, DivergedError, FedscanError

Encoding = Literal["float32", "float16", "int8"]
ENCODINGS: tuple[str, ...] = get_args(Encoding)

SCALE = "/scale"  # beside NAME in int8: NAME/scale, one step in units of the weight
LEVELS = 127  # of int8 on either side of zero; -128 is not used, so that both sides are alike


def broadcast(
    state: Mapping[str, Tensor], encoding: Encoding, reference: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Encode the server's weights for the way down.

    Parameters
    ----------
    state : mapping of str to Tensor
        Floating point, of any shapes. Not modified, and the server goes on with it.
    encoding : {"float32", "float16", "int8"}
    reference : mapping of str to Tensor, optional
        What every site holds of the round before: :func:`to_keep`. Nothing in the first round, and
        where a model is only judged. It counts in int8 alone.

    Returns
    -------
    dict of str to Tensor
        Copies on the CPU: float32 as it is, float16 rounded to the nearest. int8: differences from
        ``reference``, as of :func:`encode_update`; without one, float16.

    Raises
    ------
    DivergedError
        If a weight is not finite, or beyond the encoding: float16 ends at ±65504.
    FedscanError
        If a tensor is not floating point, or ``reference`` has other names or shapes.
    """
    _require_known(encoding)
    if encoding == "int8" and reference:
        return encode_update(state, reference, {}, encoding)[0]  # the remainder is in the next one
    dtype = torch.float32 if encoding == "float32" else torch.float16
    return {name: _finite(name, _floating(name, value), dtype) for name, value in state.items()}


def received(
    message: Mapping[str, Tensor], reference: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Decode a broadcast: what a site starts from, and what its difference is taken from.

    Parameters
    ----------
    message : mapping of str to Tensor
        From :func:`broadcast`.
    reference : mapping of str to Tensor, optional
        What was kept of the round before: :func:`to_keep`. It counts where the message holds
        differences; whole weights come in the first round, and to a site that was away.

    Returns
    -------
    dict of str to Tensor
        Copies in float32, which hold every float16 exactly: the same bits at the server, which
        decodes its own broadcast, and at every site.

    Raises
    ------
    FedscanError
        If the message holds differences and there is no ``reference``, or does not fit it; or if a
        tensor is not floating point.
    """
    if any(value.dtype == torch.int8 for value in message.values()):
        if reference:
            return decode_update(message, reference, "int8")
        raise FedscanError(
            "the weights came as differences from those of the round before, which are missing at "
            "this site. Start the run anew, or with transport = 'float16' or 'float32', which need "
            "none"
        )
    return {
        name: _floating(name, value).to(torch.float32, copy=True) for name, value in message.items()
    }


def to_keep(reference: Mapping[str, Tensor], encoding: Encoding) -> Mapping[str, Tensor]:
    """Return what server and sites must keep of a broadcast until the next one.

    Parameters
    ----------
    reference : mapping of str to Tensor
        R, as of :func:`received`.
    encoding : {"float32", "float16", "int8"}

    Returns
    -------
    mapping of str to Tensor
        In int8 R itself, else nothing.
    """
    _require_known(encoding)
    return reference if encoding == "int8" else {}


def encode_update(
    trained: Mapping[str, Tensor],
    reference: Mapping[str, Tensor],
    residual: Mapping[str, Tensor],
    encoding: Encoding,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Encode what a site's training made, for the way up.

    The way down in int8 is the same, with the server's weights in place of the trained ones.

    In float16 numbers below 6e-8 become zero and relative precision falls off below 6e-5; in int8
    a step is 1/127 of a tensor's largest entry, and half of it the largest error. Both errors are
    deterministic, and are carried into the next round, not lost.

    Parameters
    ----------
    trained : mapping of str to Tensor
        T, floating point.
    reference : mapping of str to Tensor
        R, what the site started from: :func:`received`. Names and shapes as in ``trained``.
    residual : mapping of str to Tensor
        e of the round before, or nothing, which means zeros. It is the site's own: it tells more
        of the training than what is sent does.
    encoding : {"float32", "float16", "int8"}

    Returns
    -------
    message : dict of str to Tensor
        float32: ``trained``. float16: differences. int8: differences in steps, ``NAME``, each
        beside its ``NAME/scale``, a float32 scalar (zero where nothing differs).
    residual : dict of str to Tensor
        The new e in float32, to be kept until the next round; empty in float32.

    Raises
    ------
    DivergedError
        If a weight or a difference is not finite, or too large for the encoding.
    FedscanError
        If the names or the shapes of the three do not agree, or a tensor is not floating point.
    """
    _require_known(encoding)
    _expected_names(trained, encoding)
    _require_alike(trained, reference, "the weights that were received")
    if encoding == "float32":
        whole = {name: _floating(name, value) for name, value in trained.items()}
        return {name: _finite(name, value, torch.float32) for name, value in whole.items()}, {}
    if residual:
        _require_alike(trained, residual, "the remainder of the round before")
    message: dict[str, Tensor] = {}
    remainder: dict[str, Tensor] = {}
    for name, value in trained.items():
        # In float64, so that neither the difference nor the sum is rounded before it is encoded.
        wanted = _floating(name, value).double() - _floating(name, reference[name]).double()
        if residual:
            wanted += _floating(name, residual[name]).double()
        _finite(name, wanted, torch.float32)
        if encoding == "float16":
            message[name] = _finite(name, wanted, torch.float16)
        else:
            message[name], message[name + SCALE] = _quantized(wanted)
        sent = _difference(message, name, encoding)
        remainder[name] = (wanted - sent).float()
    return message, remainder


def decode_update(
    message: Mapping[str, Tensor], reference: Mapping[str, Tensor], encoding: Encoding
) -> dict[str, Tensor]:
    """Decode an update to whole weights, or refuse all of it.

    Parameters
    ----------
    message : mapping of str to Tensor
        From :func:`encode_update`, or from somebody who means ill.
    reference : mapping of str to Tensor
        What the difference is added to. For a site's update a server gives its own float32 weights
        W, the ones that it broadcast, *before* their rounding: only so does the rounding on the way
        down not accumulate (see the head of this module). Given ``received(broadcast(W))`` it gets
        the weights as the site had them after its training. In float32 only names and shapes count.
    encoding : {"float32", "float16", "int8"}

    Returns
    -------
    dict of str to Tensor
        Whole weights in float32, in the order of ``reference``; nothing shares its memory.

    Raises
    ------
    FedscanError
        If a tensor is missing or was not asked for, has another type or shape than it must have,
        or holds or leads to a number that is not finite.
    """
    _require_known(encoding)
    _require_names(message, reference, encoding)
    dtype = {"float32": torch.float32, "float16": torch.float16, "int8": torch.int8}[encoding]
    whole: dict[str, Tensor] = {}
    for name, start in reference.items():
        _require_form(name, message[name], dtype, start.shape)
        if encoding == "int8":
            _require_form(name + SCALE, message[name + SCALE], torch.float32, torch.Size([]))
            _require_steps(name, message[name], message[name + SCALE])
        sent = _difference(message, name, encoding)
        if encoding != "float32":
            sent = _floating(name, start).double() + sent
        whole[name] = sent.to(torch.float32, copy=True)
        if not whole[name].isfinite().all():
            raise _refused(f"{name} holds a number that is not finite, or leads to one")
    return whole


def _quantized(wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Round to the nearest of 255 steps: int8 and the size of a step, ``max |wanted| / 127``."""
    largest = wanted.abs().max() if wanted.numel() else wanted.new_zeros(())
    scale = (largest / LEVELS).float()
    if scale == 0:  # nothing differs, or by less than float32 can tell
        return torch.zeros_like(wanted, dtype=torch.int8), scale
    # A scale among the subnormals is coarse, so that the largest may be more than 127 steps.
    steps = (wanted / scale.double()).round().clamp(-LEVELS, LEVELS)
    return steps.to(torch.int8), scale


def _difference(message: Mapping[str, Tensor], name: str, encoding: Encoding) -> Tensor:
    """Decode one tensor of a message: float64, or what travelled where that is float32."""
    sent = message[name].detach().cpu()
    if encoding == "float32":
        return sent
    if encoding == "float16":
        return sent.double()
    return sent.double() * message[name + SCALE].detach().cpu().double()


def _require_known(encoding: str) -> None:
    if encoding not in ENCODINGS:
        raise ConfigError(
            f"{encoding!r} is no encoding of weights. Choose one of {', '.join(ENCODINGS)}"
        )


def _floating(name: str, tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        raise FedscanError(
            f"{name} is of type {_type(tensor)}, and only floating-point weights can travel. Keep "
            "counters and masks out of the state that is shared"
        )
    return tensor.detach().cpu()


def _finite(name: str, value: Tensor, dtype: torch.dtype) -> Tensor:
    """Copy to another precision, in which every number must be finite."""
    rounded = value.to(dtype, copy=True)
    if not rounded.isfinite().all():
        raise DivergedError(
            f"{name} is not finite, or is beyond the range of {_type(rounded)}: the training has "
            "diverged. Try a lower learning rate"
        )
    return rounded


def _require_alike(one: Mapping[str, Tensor], other: Mapping[str, Tensor], what: str) -> None:
    """Compare two states of one site."""
    if different := sorted(one.keys() ^ other.keys()):
        raise FedscanError(
            f"the trained weights and {what} do not belong together: only one of them has "
            f"{different[0]}. Start the run anew"
        )
    for name, value in one.items():
        if value.shape != other[name].shape:
            raise FedscanError(
                f"the trained weights and {what} do not belong together: {name} has the shape "
                f"{_shape(value)} in one and {_shape(other[name])} in the other. Start the run anew"
            )


def _expected_names(state: Mapping[str, Tensor], encoding: Encoding) -> set[str]:
    """Names in an update to a state."""
    if encoding != "int8":
        return set(state)
    scales = {name + SCALE for name in state}
    if taken := sorted(scales & state.keys()):
        raise FedscanError(f"in int8 no weight may be named {taken[0]}: a scale is. Rename it")
    return scales | set(state)


def _require_names(
    message: Mapping[str, Tensor], reference: Mapping[str, Tensor], encoding: Encoding
) -> None:
    expected = _expected_names(reference, encoding)
    if missing := sorted(expected - message.keys()):
        raise _refused(f"{missing[0]} is missing" + _more(missing))
    if unknown := sorted(repr(name)[:80] for name in message.keys() - expected):
        raise _refused(f"{unknown[0]} was not asked for" + _more(unknown))


def _require_form(name: str, tensor: Tensor, dtype: torch.dtype, shape: torch.Size) -> None:
    if tensor.dtype != dtype:
        wanted = str(dtype).removeprefix("torch.")
        raise _refused(f"{name} is of type {_type(tensor)} where {wanted} is expected")
    if tensor.shape != shape:
        raise _refused(f"{name} has the shape {_shape(tensor)} where {tuple(shape)} is expected")


def _require_steps(name: str, steps: Tensor, scale: Tensor) -> None:
    if not (scale.isfinite() and scale >= 0):
        raise _refused(f"{name + SCALE} is negative or not finite")
    if (steps == -LEVELS - 1).any():
        raise _refused(f"{name} holds -128, which no encoder writes")


def _refused(why: str) -> FedscanError:
    return FedscanError(
        f"an update was refused, and nothing of it used: {why}. Run the same release at the server "
        "and the site, and start the run anew"
    )


def _more(names: Iterable[str]) -> str:
    others = len(list(names)) - 1
    return f" (and {others} more)" if others else ""


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)
