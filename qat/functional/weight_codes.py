"""Codes of weights that stand in the network as floats: known by their scale, or found.

A projected weight is a plain parameter with the values scale * code. Who puts them there tells the
scale; the codes are made when a product asks, once as long as nothing else is written into it.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from qat.functional.kernels import Fused, dense, fuses, is_plain, vector
from qat.functional.runtime import runtime

# largest code of a signed byte that has a negative, as the operators need
LARGEST = 127


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


@dataclass(slots=True)
class _Held:
    """What is known of a tensor's values while they are these.

    Attributes:
        scale: of the codes, None if the values are of no grid.
        version: of the tensor when its values were these.
        checksum: of its bits, as `.data` can be written to without a version that counts.
        codes: of the values, once they were asked for.
    """

    scale: Tensor | None
    version: int
    checksum: int
    codes: WeightCodes | None = None


_held: Any = WeakIdKeyDictionary()


@torch.no_grad()
def hold_scale(w: Tensor, scale: Tensor) -> None:
    """Tell the scale of a weight's values, until something else is written into it.

    Nothing is held where the runtime multiplies floats, both ways.

    Args:
        w: float32 (O, ...), with the values scale * code, code an integer -127 .. 127.
        scale: float32 of one element, or one for each of the O channels.
    """
    options = runtime()
    is_asked = options.integer_forward != "off" or options.backward != "float32"
    if is_asked and is_plain(w) and w.dtype == torch.float32 and not w.is_inference():
        _held[w] = _Held(scale.detach().reshape(-1), w._version, _checksum(w))


def codes_of(w: Tensor, *, search: bool) -> WeightCodes | None:
    """The codes of a weight's values, or None.

    Args:
        w: the weight.
        search: whether to look for a scale in its values if none is known; takes several passes
            over w, once for these values.
    """
    held: _Held | None = _held.get(w)
    if held is None or held.version != w._version or held.checksum != _checksum(w):
        if not search:
            return None
        held = _held[w] = _Held(found_scale(w), w._version, _checksum(w))
    if held.scale is not None and held.scale.device != w.device:
        held.scale, held.codes = held.scale.to(w.device), None
    if held.codes is None and held.scale is not None:
        held.codes = WeightCodes(_codes(w, held.scale), held.scale)
    return held.codes


def _checksum(w: Tensor) -> int:
    """Sum of w's bits as integers, modulo 2^64: any single change of a value changes it."""
    bits = vector(dense(w.detach()))
    pairs = len(bits) // 2
    total = int(bits[: 2 * pairs].view(torch.int64).sum())
    return total + int(bits[-1:].view(torch.int32).sum()) if len(bits) % 2 else total


@torch.no_grad()
def _codes(w: Tensor, scale: Tensor) -> Tensor:
    """Codes int8 of w's shape, row-major; a scale of 0 has codes 0."""
    rows = w.detach().reshape(len(scale), -1)
    units = scale.view(-1, 1).masked_fill(scale.view(-1, 1) == 0, 1)
    if fuses(rows) and math.prod(rows.shape) > len(rows):
        codes: Tensor = _quotients(rows, units)
    else:
        codes = (rows / units).round_().to(torch.int8)
    return codes.view(w.shape)


@Fused
def _quotients(rows: Tensor, units: Tensor) -> Tensor:
    return (rows / units).round().to(torch.int8)


@torch.no_grad()
def found_scale(w: Tensor) -> Tensor | None:
    """Scales of which w's values are whole multiples, bit for bit; None if none are found.

    The scale of a channel, or of w, is its smallest magnitude beside 0, or that over 2, 3 or 4:
    a grid whose lowest levels a weight does not use is not found.

    Args:
        w: float32 (O, ...).

    Returns:
        float32 (O,).
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
                return scale.flatten()
    return None
