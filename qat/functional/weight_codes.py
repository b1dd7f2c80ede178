"""Codes of weights that stand in the network as floats: held by whoever put them there, or found.

A projected weight is a plain parameter whose values are scale * code. Its codes are held beside it
as long as nothing else is written into it.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

# largest code of a signed byte that has a negative, as the operators need
LARGEST = 127
_PLACES = 16


@dataclass(frozen=True, slots=True)
class WeightCodes:
    """A weight as integers: value = scale * code, in float32, bit for bit.

    Attributes:
        codes: int8, of the weight's shape, -127 .. 127.
        scale: float32 (1,), or (O,) for output channels.
        packed: the codes as operators want them, by operator and shape.
    """

    codes: Tensor
    scale: Tensor
    packed: dict[Any, Tensor] = field(default_factory=dict, compare=False)


@dataclass(frozen=True, slots=True)
class _Held:
    """What is known of a tensor's values, None if they are of no grid, while they are these.

    Attributes:
        codes: of the values.
        version: of the tensor when they were held.
        sample: values at some places, as `.data` can be written to without a version that counts.
    """

    codes: WeightCodes | None
    version: int
    sample: Tensor


_held: Any = WeakIdKeyDictionary()


@torch.no_grad()
def hold_codes(w: Tensor, codes: Tensor, scale: Tensor) -> None:
    """Keep the codes of a weight's values until something else is written into it.

    Args:
        w: float32, with the values scale * codes.
        codes: int8 of w's shape, -127 .. 127.
        scale: of one element, or one for each of w's channels, the first axis.
    """
    _hold(w, WeightCodes(codes, scale.detach().reshape(-1).float()))


def codes_of(w: Tensor, *, search: bool) -> WeightCodes | None:
    """The codes of a weight's values, or None.

    Args:
        w: the weight.
        search: whether to look for codes in its values if none are held; takes several passes over
            w, once for these values.
    """
    if w.is_inference():
        return None  # whose values change without a version
    held: _Held | None = _held.get(w)
    if held is not None and held.version == w._version and torch.equal(held.sample, _sample(w)):
        return held.codes
    if not search:
        return None
    found = found_codes(w)
    _hold(w, found)
    return found


def _hold(w: Tensor, codes: WeightCodes | None) -> None:
    _held[w] = _Held(codes, w._version, _sample(w).clone())


def _sample(w: Tensor) -> Tensor:
    """Some values of w, spread over it."""
    flat = w.detach().view(-1) if w.is_contiguous() else w.detach().flatten()
    return flat[:: max(1, len(flat) // _PLACES)]


@torch.no_grad()
def found_codes(w: Tensor) -> WeightCodes | None:
    """Codes and scales that give w's values bit for bit; None if none are found.

    The scale of a channel, or of w, is its smallest magnitude beside 0, or that over 2, 3 or 4:
    a grid whose lowest levels a weight does not use is not found.

    Args:
        w: float32 (O, ...).
    """
    if w.dtype != torch.float32 or w.ndim < 2 or not w.numel():
        return None
    rows = w.detach().flatten(1)
    sizes = rows.abs()
    lowest = sizes.masked_fill_(sizes == 0, torch.inf).amin(dim=1, keepdim=True)
    lowest.masked_fill_(lowest.isinf(), 1)
    for whole in (lowest, lowest.min().expand_as(lowest)):
        for divisor in range(1, 5):
            scale = whole / divisor
            codes = (rows / scale).round_()
            if codes.abs().amax() <= LARGEST and torch.equal(codes * scale, rows):
                return WeightCodes(codes.to(torch.int8).view(w.shape), scale.flatten())
    return None
