"""Means over windows that overlap, are padded or differ in size, as sums of whole numbers.

A mean of n integers is no integer, but its product with a common multiple of all windows' sizes is:

    L mean(t) = sum over the window of (L / n) t,  L = lcm of the sizes n

So a pooling multiplies every term by L, exactly, and its multiplier by 1 / L.
"""

import math
from typing import Any

from torch import Tensor, nn

from qat.export.integer.curves import narrowed, scaled_integer
from qat.export.integer.graph import WindowMean
from qat.export.integer.numbers import Combination


def window_multiple(pool: nn.Module, before: tuple[int, ...], after: tuple[int, ...]) -> int:
    """The least common multiple of the sizes of a pooling's windows.

    Args:
        pool: AvgPool2d or AdaptiveAvgPool2d.
        before: (C, H, W) of its input.
        after: (C, H', W') of its output.
    """
    sizes = [
        {_size(pool, axis, i, before[axis + 1], after[axis + 1]) for i in range(after[axis + 1])}
        for axis in (0, 1)
    ]
    return math.lcm(*sizes[0]) * math.lcm(*sizes[1])


def _size(pool: Any, axis: int, number: int, before: int, after: int) -> int:
    """Rows, or columns, of a window that its mean is divided by."""
    if isinstance(pool, nn.AdaptiveAvgPool2d):
        return -(-(number + 1) * before // after) - number * before // after
    kernel, stride, padding = (
        pair(value)[axis] for value in (pool.kernel_size, pool.stride, pool.padding)
    )
    start = number * stride - padding
    if pool.count_include_pad:
        return min(start + kernel, before + padding) - start
    return min(start + kernel, before) - max(start, 0)


def pair(value: Any) -> tuple[int, int]:
    """An option of rows and columns, given as one number, one in a tuple, or two."""
    values = (value,) if isinstance(value, int) else tuple(value)
    return int(values[0]), int(values[-1])


def window_mean(node: WindowMean, x: Combination | Tensor) -> Combination | Tensor:
    """The mean of a value over windows; of integers without rounding, as far as 31 bits hold it."""
    if isinstance(x, Tensor):
        pooled: Tensor = node.pool(x)
        return pooled
    if node.has_zeros and bool(x.offset.any()):
        x = scaled_integer(x)  # its zeros have no offset
    terms = []
    for term in x.terms:
        # means in float64, so within 2^-21 of whole numbers, which are below 2^31
        sums = (node.pool(term.integers.double()) * node.multiple).round().long()
        peak = node.multiple * term.peak
        terms.append(narrowed(sums, term.multiplier / node.multiple, peak))
    return Combination(tuple(terms), x.offset)


def repeated(factor: tuple[int, int], t: Tensor) -> Tensor:
    """Every row and column several times, as the nearest neighbours of an enlarged map are."""
    return t.repeat_interleave(factor[0], 2).repeat_interleave(factor[1], 3)
