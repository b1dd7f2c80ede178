"""Packed codes: a weight's codes in as few bits as its levels need, to wait in a checkpoint."""

from typing import Any

import torch
from torch import Tensor

from qat.functional.bits import pack_bits, unpack_bits

_LOW = 128  # of int8


def packed_codes(codes: Tensor) -> dict[str, Any]:
    """Codes int8 of any shape as plain values: the levels there are, and which each code is.

    >>> packed_codes(torch.tensor([-1, 1, 1, -1], dtype=torch.int8))["places"].tolist()
    [6]
    """
    unsigned = codes.cpu().int() + _LOW
    levels = torch.bincount(unsigned.flatten(), minlength=2 * _LOW).nonzero().flatten()
    place = torch.zeros(2 * _LOW, dtype=torch.uint8)
    place[levels] = torch.arange(len(levels), dtype=torch.uint8)
    return {
        "levels": (levels - _LOW).to(torch.int8),
        "places": pack_bits(place[unsigned], _bits(levels)),
        "shape": list(codes.shape),
    }


def unpacked_codes(saved: dict[str, Any] | Tensor) -> Tensor:
    """The codes int8 that `packed_codes` has packed; earlier versions saved them as they are.

    Raises:
        CheckpointError: not as many bytes as the shape wants.
    """
    if isinstance(saved, Tensor):
        return saved.cpu()
    levels, shape = saved["levels"].cpu(), torch.Size(saved["shape"])
    places = unpack_bits(saved["places"].cpu(), _bits(levels), shape.numel())
    codes: Tensor = levels[places.int()]
    return codes.view(shape)


def _bits(levels: Tensor) -> int:
    return max(1, (len(levels) - 1).bit_length())
