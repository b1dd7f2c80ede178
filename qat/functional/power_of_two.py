"""Power-of-two grids: zero and powers of two, by which a shift multiplies."""

import torch
from torch import Tensor

from qat.functional.excess import excess
from qat.functional.grid import keep_from, nonzero, times
from qat.functional.rows import (
    by_piece,
    fitted,
    is_plain_cpu,
    means_and_peaks,
    pieces,
    row_peaks,
    row_sums,
    spare,
)

# Exponent bits of a float32: what is left of a magnitude is 2^floor(log2)
_EXPONENT = 0x7F800000
# Powers that are looked at together; smaller matrices are counted whole: that costs less there
_POWERS, _COUNT_BELOW = 4, 1 << 14


def power_of_two_levels(bits: int) -> tuple[float, ...]:
    """Levels 0, +-2^(1-n), ..., +-1/2, +-1 in rising order, n = 2^(bits-2); `bits` is 2 .. 6."""
    n = _count(bits)
    rising = [2.0 ** (k - n) for k in range(1, n + 1)]
    return (*(-level for level in reversed(rising)), 0.0, *rising)


@torch.no_grad()
def fit_power_of_two(
    rows: Tensor,
    bits: int,
    *,
    mu: float = 0.75,
    out: Tensor | None = None,
    scaled: bool = False,
) -> tuple[Tensor, Tensor]:
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
        out: float32 tensor (G, N) for the values; None takes new memory.
        scaled: whether values come multiplied by their scale, as Q(w).

    Returns:
        Values float32 (G, N) and scale 2^s float32 (G, 1).

    Source: arXiv:1612.06052.
    """
    rows = rows.float()
    values = torch.empty_like(rows) if out is None else out
    if by_piece(rows):
        pairs = pieces(rows, values)
        own = [fit_power_of_two(r, bits, mu=mu, out=v, scaled=scaled)[1] for r, v in pairs]
        return values, torch.cat(own)
    if bits == 2:
        scale = _nearest_scale(rows)
        return keep_from(rows, scale / 2, values, scale=scale if scaled else None), scale
    energy, match = _threshold_levels(rows, _count(bits), mu, values)
    scale = _floor_power(match.double().mul_(4) / nonzero(energy.double()).mul_(3)).float()
    return (times(values, scale) if scaled else values), scale


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


def _threshold_levels(rows: Tensor, n: int, mu: float, values: Tensor) -> tuple[Tensor, Tensor]:
    """Values by the thresholds of `fit_power_of_two` into `values`.

    Returns:
        <value, value> and <w, value> of each row, float32 (G, 1).
    """
    top = nonzero(row_peaks(rows).mul_(mu))
    ratio, buffer = spare(rows), spare(rows)
    energies, matches = [], []
    for part, v, d in pieces(rows, values, top):
        share, other = fitted(ratio, part), fitted(buffer, part)
        torch.abs(part, out=share).div_(d)
        torch.bitwise_and(share.view(torch.int32), _EXPONENT, out=other.view(torch.int32))
        is_kept = share.ge_(2.0 ** (2 - n) / 3)
        torch.mul(other.clamp_(2.0 ** (1 - n), 1), is_kept, out=v)
        # zeros are +0.0, as codes decode
        v.mul_(torch.sign(part, out=other)).add_(0.0)
        energies.append(torch.mul(v, v, out=other).sum(dim=1, keepdim=True))
        matches.append(torch.mul(part, v, out=other).sum(dim=1, keepdim=True))
    return row_sums(energies, rows), row_sums(matches, rows)


def _nearest_scale(rows: Tensor) -> Tensor:
    """Best 2^s of {-2^s, 0, 2^s}: the scale of the nearest point, or 0.

    The best s has 2^s > 2/3 mean|w| and 2^s <= 4/3 max|w|. On CPU the powers between are compared
    by what lies above their thresholds (`excess`), a few at a time, until a chord proves that
    those above are worse; where two powers are as good but for rounding, all is counted exactly.
    """
    if not is_plain_cpu(rows) or rows.numel() < _COUNT_BELOW:
        return _counted_scale(rows)
    mean, peak = means_and_peaks(rows)
    # also NaN; and powers of two that float32 does not hold
    if not bool(((mean < 1e30) & (peak < 1e30) & ((mean > 1e-30) | (peak == 0))).all()):
        return _counted_scale(rows)
    point = _floor_power(mean / 3)
    powers = torch.exp2(torch.arange(_POWERS, device=rows.device))
    points, gains, errors = [], [], []
    reached = torch.zeros_like(mean, dtype=torch.float64)
    grows = True
    while grows:
        points.append(point * powers)
        found, error = excess(rows, points[-1])
        gains.append(points[-1].double() * found)
        errors.append(points[-1].double() * error)
        reached = torch.maximum(reached, (gains[-1] - errors[-1]).amax(dim=1, keepdim=True))
        last = points[-1][:, -1:]
        grows = bool(_may_grow(last, (found + error)[:, -1:], peak, reached).any())
        point = 2 * last
    gain, error = torch.cat(gains, dim=1), torch.cat(errors, dim=1)
    best = gain.argmax(dim=1, keepdim=True)
    rival = (gain + error).scatter(1, best, -1).amax(dim=1, keepdim=True)
    if bool(((rival >= (gain - error).gather(1, best)) & (peak > 0)).any()):
        return _counted_scale(rows)
    return (2 * torch.cat(points, dim=1).gather(1, best)).masked_fill_(peak == 0, 0)


def _may_grow(last: Tensor, excess_: Tensor, peak: Tensor, reached: Tensor) -> Tensor:
    """Whether t R(t) can exceed `reached` above the `last` threshold: R is below its chord."""
    fall = excess_ / (peak - last.double())
    most = torch.maximum(fall * peak * peak / 4, last.double() * excess_)
    return (peak > 2 * last) & (most >= reached)


def _counted_scale(rows: Tensor) -> Tensor:
    """The same scale, by counting the magnitudes of every power of two.

    For a given s the best values keep |w| >= 2^(s-1), so the objective 4^s k - 2^(1+s) S needs only
    the count k and the sum S of the magnitudes above a power of two. The best s has
    2^s > 2/3 mean|w| >= 2/3 max|w| / N: log2(N) + 3 powers below the peak are enough.
    """
    size = rows.abs()
    bins = size.shape[1].bit_length() + 3
    mantissa, peak = torch.frexp(size.amax(dim=1, keepdim=True))
    depth = (peak - torch.frexp(size).exponent).masked_fill_(size == 0, bins).clamp_(0, bins - 1)
    counts, sums = _histogram(depth.long(), size, bins)
    level = torch.exp2((peak - torch.arange(bins, device=size.device)).double())
    objective = level * (level * counts.cumsum(dim=1) - 2 * sums.cumsum(dim=1))
    best = objective.argmin(dim=1, keepdim=True)
    # ceil(mantissa) is 1, but 0 for a row of zeros and NaN where the row has one
    return torch.ldexp(mantissa.ceil_(), peak - best)


def _histogram(place: Tensor, size: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    """Count and sum of the magnitudes `size` (G, N) that have each `place`, an int64 bin number.

    Returns:
        Two float64 tensors (G, bins).
    """
    empty = size.new_zeros(size.shape[0], bins, dtype=torch.float64)
    counts = empty.scatter_add(1, place, empty.new_ones(()).expand_as(size))
    return counts, empty.scatter_add_(1, place, size.double())


def nearest_power(scale: Tensor) -> Tensor:
    """Power of two nearest to each positive scale: 2^floor(log2(4 s / 3)); 0 stays.

    Of all powers of two it has the least squared error, if `scale` has the least of all scales.
    """
    return _floor_power(scale * (4 / 3))


def _floor_power(value: Tensor) -> Tensor:
    """Largest power of two <= value, exactly; 0 and NaN stay."""
    mantissa, exponent = torch.frexp(value)
    return torch.ldexp(mantissa.ceil_(), exponent - 1)
