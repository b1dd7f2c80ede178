"""Weight grids with evenly spaced levels: binary, threshold ternary, uniform.

Every `fit_...` works on rows, a float tensor (G, N) of G scale groups (one per tensor, or one per
output channel), and answers values float32 (G, N), the grid's levels in units of the scale, and the
scale float32 (G, 1), so that Q(w) = values * scale. Arithmetic is float32 at least. A row of zeros
gets scale 0; a row that holds NaN or infinity gets a scale that is not finite, never a plain one.

The exact ternary grid is in `ternary`, powers of two are in `power_of_two`. Steps write into their
own buffers, piece by piece (`rows`): fresh memory, bool tensors and large passes cost more on CPU
than the arithmetic. Sums over rows of more than `rows.PIECE` numbers are sums of their pieces'; all
others are one sum, whatever stands beside them in the matrix.
"""

import torch
from torch import Tensor

from qat.functional.gaussian import gaussian_step
from qat.functional.rows import (
    PIECE,
    by_piece,
    fitted,
    is_plain_cpu,
    means,
    pieces,
    row_peaks,
    row_sums,
    spare,
)

BINARY_LEVELS = (-1.0, 1.0)
TERNARY_LEVELS = (-1.0, 0.0, 1.0)
# Weights of one scale from which reading its cut costs less than two comparisons do
_HARD_FROM = 1 << 16
# Binary digits of a step whose products with seven-bit levels are exact in float32
GRID_DIGITS = 16
# Numbers of a row that are looked at before all of it
_FEW = 4
# Cut of threshold ternary as a fraction of mean|w|, arXiv:1605.04711
_TERNARY_CUT = 0.7


def uniform_levels(bits: int) -> tuple[float, ...]:
    """Levels -M .. M of the uniform grid in units of its scale; `bits` is 2 .. 8."""
    largest = _largest(bits)
    return tuple(float(level) for level in range(-largest, largest + 1))


@torch.no_grad()
def fit_binary(
    rows: Tensor, *, out: Tensor | None = None, scaled: bool = False
) -> tuple[Tensor, Tensor]:
    """Nearest point of {-s, +s}^N, s >= 0, to each row.

        value = +1 where w >= 0 (both zeros), else -1;   s = mean |w|

    Args:
        rows: float tensor (G, N).
        out: float32 tensor (G, N) for the values; None takes new memory.
        scaled: whether values come multiplied by their scale, as Q(w).

    Returns:
        Values float32 (G, N) and scale float32 (G, 1).

    Source: arXiv:1808.05240, the authors' code.
    """
    rows = rows.float()
    values = torch.empty_like(rows) if out is None else out
    if by_piece(rows):
        pairs = pieces(rows, values)
        return values, torch.cat([fit_binary(r, out=v, scaled=scaled)[1] for r, v in pairs])
    scale = means(rows)
    for part, v, s, twice in pieces(rows, values, scale, 2 * scale):
        torch.ge(part, 0, out=v)
        if scaled and rows.shape[1] > 1:
            # a mean of two and more that is finite has a finite double
            v.mul_(twice).sub_(s)
        else:
            v.mul_(2).sub_(1)
    return (times(values, scale) if scaled and rows.shape[1] == 1 else values), scale


@torch.no_grad()
def fit_ternary_threshold(
    rows: Tensor, *, out: Tensor | None = None, scaled: bool = False
) -> tuple[Tensor, Tensor]:
    """Ternary point of each row by a fixed threshold: close to the nearest one, not exact.

        value = sign(w) where |w| >= 0.7 mean|w|, else 0;   s = mean of the kept |w|

    Unlike the authors' code of arXiv:1808.05240, which divides by all N, the scale is the
    least-squares one of these values.

    Args:
        rows: float tensor (G, N).
        out: float32 tensor (G, N) for the values; None takes new memory.
        scaled: whether values come multiplied by their scale, as Q(w).

    Returns:
        Values float32 (G, N) and scale float32 (G, 1).

    Source: arXiv:1605.04711.
    """
    rows = rows.float()
    values = torch.empty_like(rows) if out is None else out
    if by_piece(rows):
        pairs = pieces(rows, values)
        parts = [fit_ternary_threshold(r, out=v, scaled=scaled)[1] for r, v in pairs]
        return values, torch.cat(parts)
    cut = means(rows).mul_(_TERNARY_CUT)
    keep_from(rows, cut, values)
    scale = least_squares_scale(rows, values)
    return (times(values, scale) if scaled else values), scale


@torch.no_grad()
def fit_uniform(
    rows: Tensor,
    bits: int,
    *,
    rounds: int = 5,
    out: Tensor | None = None,
    scaled: bool = False,
) -> tuple[Tensor, Tensor]:
    """Point of the uniform grid near each row, by alternating least squares.

        start:        s = d_M * rms(w),   d_M the optimal step for N(0, 1),   M = 2^(bits-1) - 1
        each round:   value = clip(round(w / s), -M, M);   s = <w, value> / <value, value>

    Stateless and not exact: the error never rises in a round, but another start may end lower, and
    projecting a point between w and the result may give other values. Rows that are on the grid
    to the last bit, with steps of `GRID_DIGITS` binary digits, stay as they are on a CPU.

    Args:
        rows: float tensor (G, N).
        bits: 2 .. 8.
        rounds: number of alternations, >= 1.
        out: float32 tensor (G, N) for the values; None takes new memory.
        scaled: whether values come multiplied by their scale, as Q(w).

    Returns:
        Values float32 (G, N) and scale float32 (G, 1).

    Source: arXiv:1808.05240 for the alternation; the start is ours.
    """
    rows = rows.float()
    values = torch.empty_like(rows) if out is None else out
    if by_piece(rows):
        pairs = pieces(rows, values)
        parts = [fit_uniform(r, bits, rounds=rounds, out=v, scaled=scaled)[1] for r, v in pairs]
        return values, torch.cat(parts)
    largest = _largest(bits)
    peak = row_peaks(rows)
    scale = _start(rows, peak).mul_(gaussian_step(largest))
    buffer, trial = spare(rows), spare(rows)
    for round_ in range(rounds):
        divisor, sums = nonzero(scale), []
        for part, v, d in pieces(rows, values, divisor):
            # only the last round's values are kept; the others need not leave the cache
            codes = v if round_ == rounds - 1 else fitted(trial, part)
            torch.div(part, d, out=codes).round_().clamp_(-largest, largest)
            sums.append(_products(part, codes, buffer))
        energy, match = (row_sums(parts, rows) for parts in zip(*sums, strict=True))
        scale = _quotient(match, energy)
    scale = _with_points(rows, peak, values, scale, largest)
    for v, s in pieces(values, scale):
        v.add_(0.0)  # -0.0 to 0.0, as codes decode
        if scaled:
            v.mul_(s)
    return values, scale


def _with_points(rows: Tensor, peak: Tensor, values: Tensor, scale: Tensor, largest: int) -> Tensor:
    """The scale, with that of rows which are points of the grid; `values` get theirs in place.

    Of other rows the first numbers tell, as they would have to be multiples of a part of the peak.
    """
    if not is_plain_cpu(rows):  # elsewhere every step would wait for the answer
        return scale
    parts = nonzero(peak) / torch.arange(1, largest + 1, device=rows.device)
    few = rows[:, :_FEW].unsqueeze(2) / parts.unsqueeze(1)
    may_be = (few == few.round()).all(dim=1) & (peak > 0)
    if not bool(may_be.any()):
        return scale
    for level in (may_be.any(dim=0).nonzero().flatten() + 1).tolist():
        step = parts[:, level - 1 : level]
        codes = (rows / step).round_()
        is_point = (codes * step == rows).all(dim=1, keepdim=True)
        # rows of one magnitude are what any step makes of them
        is_point &= ((codes != 0) & (codes.abs() != level)).any(dim=1, keepdim=True)
        found = is_point & may_be[:, level - 1 : level]
        values.copy_(torch.where(found, codes, values))
        scale, may_be = torch.where(found, step, scale), may_be & ~found
    return scale


def short_scale(scale: Tensor) -> Tensor:
    """Scales cut to `GRID_DIGITS` binary digits: their products with levels are exact in float32.

    Args:
        scale: float tensor, >= 0, within float32's normal numbers.

    Returns:
        float32 of the same shape, off by a relative 2^-GRID_DIGITS at most.
    """
    mantissa, exponent = torch.frexp(scale.double())
    return torch.ldexp(torch.round(mantissa * 2**GRID_DIGITS), exponent - GRID_DIGITS).float()


def _start(rows: Tensor, peak: Tensor) -> Tensor:
    """Root of the mean square of each row, (G, 1)."""
    buffer = spare(rows)
    # dividing by the peak first keeps the squares inside float32
    sums = []
    for part, d in pieces(rows, nonzero(peak)):
        share = torch.div(part, d, out=fitted(buffer, part))
        sums.append(share.square_().sum(dim=1, keepdim=True))
    return row_sums(sums, rows).div_(rows.shape[1]).sqrt_().mul_(peak)


def least_squares_scale(rows: Tensor, values: Tensor) -> Tensor:
    """Scale <w, value> / <value, value> of each row, (G, 1), 0 if all values are 0.

    Args:
        rows: float32 tensor (G, N).
        values: integers as float32 (G, N).
    """
    buffer = spare(rows)
    pairs = [_products(part, v, buffer) for part, v in pieces(rows, values)]
    energy, match = (row_sums(parts, rows) for parts in zip(*pairs, strict=True))
    return _quotient(match, energy)


def _products(rows: Tensor, values: Tensor, buffer: Tensor) -> tuple[Tensor, Tensor]:
    """<value, value> and <w, value> of each row of a piece, (g, 1); overwrites the buffer."""
    if rows.shape == (1, PIECE) and is_plain_cpu(rows):
        # part of a longer row: sums of parts are added up anyhow, and BLAS reads without writing
        flat = values[0]
        return torch.dot(flat, flat).view(1, 1), torch.dot(rows[0], flat).view(1, 1)
    product = fitted(buffer, rows)
    energy = torch.mul(values, values, out=product).sum(dim=1, keepdim=True)
    return energy, torch.mul(rows, values, out=product).sum(dim=1, keepdim=True)


def _quotient(match: Tensor, energy: Tensor) -> Tensor:
    # the energy of integers is 0 or at least 1
    return match.div_(energy.clamp_min_(1))


def keep_from(rows: Tensor, cut: Tensor, values: Tensor, *, scale: Tensor | None = None) -> Tensor:
    """sign(w) where |w| >= cut, else +0.0, times `scale` where given, into `values`.

    Args:
        rows: float32 tensor (G, N).
        cut: float32 tensor (G, 1), >= 0.
        values: float32 tensor (G, N).
        scale: float32 tensor (G, 1).
    """
    if cut.numel() == 1 and rows.numel() >= _HARD_FROM and is_plain_cpu(rows):
        # one cut for all: hardshrink drops |w| <= its bound
        bound = float(torch.nextafter(cut, torch.full_like(cut, -1)))
        for part, v in pieces(rows, values):
            torch.ops.aten.hardshrink.out(part, bound, out=v).sign_()
            if scale is not None:
                v.mul_(scale)  # of one row
        return values
    buffer, below = spare(rows), -cut
    for part, v, high, low, s in pieces(rows, values, cut, below, cut if scale is None else scale):
        # a row of zeros has cut 0: its zeros are kept on both sides, 1 - 1
        torch.ge(part, high, out=v).sub_(torch.le(part, low, out=fitted(buffer, part)))
        if scale is not None:
            v.mul_(s)
    return values


def times(values: Tensor, scale: Tensor) -> Tensor:
    """Values (G, N) times the scale (G, 1) of their row, in place."""
    for v, s in pieces(values, scale):
        v.mul_(s)
    return values


def with_sign(size: Tensor, rows: Tensor) -> Tensor:
    """`size` with the signs of `rows`, in place; zeros are +0.0, as codes decode."""
    return size.mul_(rows.sign()).add_(0.0)


def nonzero(divisor: Tensor) -> Tensor:
    """`divisor` with 1 in place of 0, for quotients whose numerator is 0 as well; NaN stays."""
    return divisor.masked_fill(divisor == 0, 1)


def _largest(bits: int) -> int:
    """Largest level M = 2^(bits-1) - 1 of the symmetric uniform grid."""
    return (1 << (bits - 1)) - 1
