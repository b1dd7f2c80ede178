"""Power-of-two grids: zero and powers of two, by which a shift multiplies."""

import torch
from torch import Tensor

from qat.functional.grid import nonzero, with_sign
from qat.functional.ternary import histogram


def power_of_two_levels(bits: int) -> tuple[float, ...]:
    """Levels 0, +-2^(1-n), ..., +-1/2, +-1 in rising order, n = 2^(bits-2); `bits` is 2 .. 6."""
    n = _count(bits)
    rising = [2.0 ** (k - n) for k in range(1, n + 1)]
    return (*(-level for level in reversed(rising)), 0.0, *rising)


@torch.no_grad()
def fit_power_of_two(rows: Tensor, bits: int, *, mu: float = 0.75) -> tuple[Tensor, Tensor]:
    """Point of the grid 2^s {0, +-2^(1-n), ..., +-1/2, +-1}, n = 2^(bits-2), near each row.

    Two bits: the nearest point. Three bits and more, with m = mu * max|w|:

        |value| = 1          where |w| >= m
                = 2^-t       where 2^-t m <= |w| < 2^(1-t) m,   t = 1 .. n-2
                = 2^(1-n)    where 2^(2-n) m / 3 <= |w| < 2^(2-n) m
                = 0          below
        s = floor(log2(4 <w, value> / (3 <value, value>))), the best s for these values

    The error depends much on mu, whose best value depends on the bits and on the weights' spread.

    Args:
        rows: float tensor (G, N).
        bits: 2 .. 6.
        mu: threshold of the top level as a fraction of max|w|, in (0, 1]; not used at two bits.

    Returns:
        Values float32 (G, N) and scale 2^s float32 (G, 1).

    Source: arXiv:1612.06052.
    """
    rows = rows.float()
    size = rows.abs()
    if bits == 2:
        scale = _nearest_scale(size)
        return with_sign(size.ge_(scale / 2), rows), scale
    values = _threshold_levels(size, _count(bits), mu)
    energy = values.square().sum(dim=1, keepdim=True).double()
    match = size.mul_(values).sum(dim=1, keepdim=True).double()
    scale = _floor_power(match.mul_(4) / nonzero(energy).mul_(3)).float()
    return with_sign(values, rows), scale


@torch.no_grad()
def exponent_codes(values: Tensor, bits: int) -> Tensor:
    """Exponent indices of levels: +-k for +-2^(k-n), k = 1 .. n, and 0 for 0; n = 2^(bits-2).

    Args:
        values: levels as `fit_power_of_two` gives them.
        bits: 2 .. 6.

    Returns:
        int8 tensor of the same shape.
    """
    # frexp: |value| = 2^(exponent - 1)
    index = torch.frexp(values).exponent.add_(_count(bits) - 1)
    return index.to(torch.int8).mul_(values.sign().to(torch.int8))


@torch.no_grad()
def exponent_values(codes: Tensor, bits: int) -> Tensor:
    """Levels of exponent indices, the inverse of `exponent_codes`.

    Args:
        codes: int8 tensor of values -n .. n, n = 2^(bits-2).
        bits: 2 .. 6.

    Returns:
        float32 tensor of the same shape.
    """
    levels = torch.tensor(power_of_two_levels(bits), device=codes.device)
    # index_select is several times faster than levels[place] on CPU
    place = codes.int().add_(_count(bits)).flatten()
    return levels.index_select(0, place).view(codes.shape)


def _count(bits: int) -> int:
    """Number n of positive levels."""
    return 1 << (bits - 2)


def _threshold_levels(size: Tensor, n: int, mu: float) -> Tensor:
    """|value| of magnitudes `size` by the thresholds of `fit_power_of_two`."""
    ratio = size / nonzero(size.amax(dim=1, keepdim=True).mul_(mu))
    # ratio = mantissa * 2^exponent with mantissa in [1/2, 1), so floor(log2) = exponent - 1
    exponent = torch.frexp(ratio).exponent.sub_(1).clamp_(1 - n, 0)
    return ratio.ge_(2.0 ** (2 - n) / 3).mul_(exponent.float().exp2_())


def _nearest_scale(size: Tensor) -> Tensor:
    """Best 2^s of {-2^s, 0, 2^s}: the scale of the nearest point, or 0.

    For a given s the best values keep |w| >= 2^(s-1), so the objective 4^s k - 2^(1+s) S needs only
    the count k and the sum S of the magnitudes above a power of two. The best s has
    2^s > 2/3 mean|w| >= 2/3 max|w| / N: log2(N) + 3 powers below the peak are enough.
    """
    bins = size.shape[1].bit_length() + 3
    mantissa, peak = torch.frexp(size.amax(dim=1, keepdim=True))
    depth = (peak - torch.frexp(size).exponent).masked_fill_(size == 0, bins).clamp_(0, bins - 1)
    counts, sums = histogram(depth.long(), size, bins)
    level = torch.exp2((peak - torch.arange(bins, device=size.device)).double())
    objective = level * (level * counts.cumsum(dim=1) - 2 * sums.cumsum(dim=1))
    best = objective.argmin(dim=1, keepdim=True)
    # ceil(mantissa) is 1, but 0 for a row of zeros and NaN where the row has one
    return torch.ldexp(mantissa.ceil_(), peak - best)


def _floor_power(value: Tensor) -> Tensor:
    """Largest power of two <= value, exactly; 0 and NaN stay."""
    mantissa, exponent = torch.frexp(value)
    return torch.ldexp(mantissa.ceil_(), exponent - 1)
