"""Weight grids with evenly spaced levels: binary, threshold ternary, uniform.

Every `fit_...` works on rows, a float tensor (G, N) of G scale groups (one per tensor, or one per
output channel), and answers values float32 (G, N), the grid's levels in units of the scale, and the
scale float32 (G, 1), so that Q(w) = values * scale. Arithmetic is float32 at least. A row of zeros
gets scale 0; a row that holds NaN or infinity gets a scale that is not finite, never a plain one.

The exact ternary grid is in `ternary`, powers of two are in `power_of_two`. Steps write into their
own buffers: fresh memory and bool tensors cost more on CPU than the arithmetic.
"""

import torch
from torch import Tensor

from qat.functional.gaussian import gaussian_step

BINARY_LEVELS = (-1.0, 1.0)
TERNARY_LEVELS = (-1.0, 0.0, 1.0)
# Cut of threshold ternary as a fraction of mean|w|, arXiv:1605.04711
_TERNARY_CUT = 0.7


def uniform_levels(bits: int) -> tuple[float, ...]:
    """Levels -M .. M of the uniform grid in units of its scale; `bits` is 2 .. 8."""
    largest = _largest(bits)
    return tuple(float(level) for level in range(-largest, largest + 1))


@torch.no_grad()
def fit_binary(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Nearest point of {-s, +s}^N, s >= 0, to each row.

        value = +1 where w >= 0 (both zeros), else -1;   s = mean |w|

    Args:
        rows: float tensor (G, N).

    Returns:
        Values float32 (G, N) and scale float32 (G, 1).

    Source: arXiv:1808.05240, the authors' code.
    """
    rows = rows.float()
    buffer = rows.abs()
    scale = buffer.mean(dim=1, keepdim=True)
    return torch.ge(rows, 0, out=buffer).mul_(2).sub_(1), scale


@torch.no_grad()
def fit_ternary_threshold(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Ternary point of each row by a fixed threshold: close to the nearest one, not exact.

        value = sign(w) where |w| >= 0.7 mean|w|, else 0;   s = mean of the kept |w|

    Unlike the authors' code of arXiv:1808.05240, which divides by all N, the scale is the
    least-squares one of these values.

    Args:
        rows: float tensor (G, N).

    Returns:
        Values float32 (G, N) and scale float32 (G, 1).

    Source: arXiv:1605.04711.
    """
    rows = rows.float()
    size = rows.abs()
    cut = size.mean(dim=1, keepdim=True).mul_(_TERNARY_CUT)
    values = with_sign(size.ge_(cut), rows)
    return values, least_squares_scale(rows, values, torch.empty_like(rows))


@torch.no_grad()
def fit_uniform(rows: Tensor, bits: int, *, rounds: int = 5) -> tuple[Tensor, Tensor]:
    """Point of the uniform grid near each row, by alternating least squares.

        start:        s = d_M * rms(w),   d_M the optimal step for N(0, 1),   M = 2^(bits-1) - 1
        each round:   value = clip(round(w / s), -M, M);   s = <w, value> / <value, value>

    Stateless and not exact: the error never rises in a round, but another start may end lower, and
    projecting a point between w and the result may give other values.

    Args:
        rows: float tensor (G, N).
        bits: 2 .. 8.
        rounds: number of alternations, >= 1.

    Returns:
        Values float32 (G, N) and scale float32 (G, 1).

    Source: arXiv:1808.05240 for the alternation; the start is ours.
    """
    rows = rows.float()
    largest = _largest(bits)
    # dividing by the peak first keeps the squares inside float32
    peak = torch.maximum(rows.amax(dim=1, keepdim=True), -rows.amin(dim=1, keepdim=True))
    values = rows / nonzero(peak)
    buffer = values.square()
    scale = buffer.mean(dim=1, keepdim=True).sqrt_().mul_(peak).mul_(gaussian_step(largest))
    for _ in range(rounds):
        torch.div(rows, nonzero(scale), out=values).round_().clamp_(-largest, largest)
        scale = least_squares_scale(rows, values, buffer)
    return values.add_(0.0), scale  # -0.0 to 0.0, as codes decode


def least_squares_scale(rows: Tensor, values: Tensor, buffer: Tensor) -> Tensor:
    """Scale <w, value> / <value, value> of each row, 0 if all values are 0; overwrites `buffer`.

    Args:
        rows: float32 tensor (G, N).
        values: integers as float32 (G, N).
        buffer: float32 tensor (G, N).
    """
    energy = torch.mul(values, values, out=buffer).sum(dim=1, keepdim=True)
    match = torch.mul(rows, values, out=buffer).sum(dim=1, keepdim=True)
    # the energy of integers is 0 or at least 1
    return match.div_(energy.clamp_min_(1))


def with_sign(size: Tensor, rows: Tensor) -> Tensor:
    """`size` with the signs of `rows`, in place; zeros are +0.0, as codes decode."""
    return size.mul_(rows.sign()).add_(0.0)


def nonzero(divisor: Tensor) -> Tensor:
    """`divisor` with 1 in place of 0, for quotients whose numerator is 0 as well; NaN stays."""
    return divisor.masked_fill(divisor == 0, 1)


def _largest(bits: int) -> int:
    """Largest level M = 2^(bits-1) - 1 of the symmetric uniform grid."""
    return (1 << (bits - 1)) - 1
