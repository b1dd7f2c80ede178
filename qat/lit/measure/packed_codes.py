"""Packed codes: a weight's codes in as few bits as its levels need, to wait in a checkpoint."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from qat.functional.bits import pack_bits, packed_size, unpack_bits

_LOW = 128  # of int8


def packed_codes(codes: Tensor) -> dict[str, Any]:
    """Codes int8 of any shape as plain values: the levels there are, and which each code is.

    >>> packed_codes(torch.tensor([-1, 1, 1, -1], dtype=torch.int8))["places"].tolist()
    [6]
    """
    flat = codes.cpu().flatten()
    levels, places = _two_levels(flat) or _any_levels(flat)
    return {"levels": levels, "places": places, "shape": list(codes.shape)}


def _two_levels(flat: Tensor) -> tuple[Tensor, Tensor] | None:
    """Signs, which most weights are, six times as fast; None of codes with other levels."""
    if not len(flat):
        return None
    low, high = (int(end) for end in flat.aminmax())
    is_high = flat == high
    count = int(is_high.count_nonzero())
    if low == high or count + int((flat == low).count_nonzero()) < len(flat):
        return None
    places = np.packbits(is_high.numpy(), bitorder="little")
    return torch.tensor([low, high], dtype=torch.int8), torch.from_numpy(places)


def _any_levels(flat: Tensor) -> tuple[Tensor, Tensor]:
    unsigned = flat.int() + _LOW
    levels = torch.bincount(unsigned, minlength=2 * _LOW).nonzero().flatten()
    place = torch.zeros(2 * _LOW, dtype=torch.uint8)
    place[levels] = torch.arange(len(levels), dtype=torch.uint8)
    return (levels - _LOW).to(torch.int8), pack_bits(place[unsigned], _bits(levels))


def unpacked_codes(saved: dict[str, Any] | Tensor) -> Tensor:
    """The codes int8 that `packed_codes` has packed; earlier versions saved them as they are.

    Raises:
        CheckpointError: not as many bytes as the shape wants.
    """
    if isinstance(saved, Tensor):
        return saved.cpu()
    levels, shape = saved["levels"].cpu(), torch.Size(saved["shape"])
    places, count = saved["places"].cpu(), shape.numel()
    if len(levels) == 2 and count % 8 == 0 and _is_whole(places, count):
        found = torch.from_numpy(np.unpackbits(places.numpy(), bitorder="little").view(np.int8))
        # modulo 256, which int8 is, where the levels are far apart
        return found.mul_(levels[1] - levels[0]).add_(levels[0]).view(shape)
    codes: Tensor = levels[unpack_bits(places, _bits(levels), count).int()]
    return codes.view(shape)


def _is_whole(places: Tensor, count: int) -> bool:
    return places.dtype == torch.uint8 and places.shape == (packed_size(count, 1),)


def _bits(levels: Tensor) -> int:
    return max(1, (len(levels) - 1).bit_length())
