"""Sorting and picking magnitudes on CPU: NumPy's vectorised loops where memory can be shared.

torch sorts pairs of value and position, by comparison; NumPy sorts the values alone with AVX-512
or AVX2, some twenty times faster. The values are the same, so it only decides how long it takes.
"""

from typing import Any

import torch
from torch import Tensor

from qat.functional.rows import is_plain_cpu


def falling(size: Tensor) -> Tensor:
    """Each row of `size` (G, N) sorted down, NaN first; `size` is overwritten."""
    array = _array(size)
    if array is None:
        return size.sort(dim=1, descending=True).values
    array.sort(axis=1)  # NaN last
    return torch.from_numpy(array).flip(1)


def between(size: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Elements (P,) of `size` (G, N) in [low, high], (G, 1) each, in the order of memory."""
    array = _array(size)
    if array is None:
        return size[(size >= low).logical_and_(size <= high)]
    inside = array >= low.numpy()
    inside &= array <= high.numpy()
    return torch.from_numpy(array.reshape(-1).compress(inside.reshape(-1)))


def _array(size: Tensor) -> Any:
    """The NumPy array that is a tensor's memory; None where there is none or somebody traces."""
    if not is_plain_cpu(size):
        return None
    try:
        return size.numpy()
    except RuntimeError:  # torch without NumPy
        return None
