"""Excess of magnitudes above a threshold, by which exact grids find their scale without sorting.

With the levels -s, 0, s the best point for a scale s keeps |w| >= t, t = s / 2, and lowers the
squared distance from ||w||^2 by

    G(t) = sum (2 s |w| - s^2)_+ = 4 t R(t),      R(t) = sum (|w| - t)_+

R is convex and falls from sum |w| at 0 to 0 at the peak. So between two thresholds at which it is
known R lies below its chord, and G below a parabola: intervals whose parabola stays below a G that
is reached elsewhere cannot hold the best t.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from qat.functional.rows import PIECE, fitted, pieces, row_sums, spare

# Relative to sum max(|w|, t), in which R's rounding lies. torch adds a piece up in cascades of 16
# numbers, some 60 roundings of 2^-24 for each number at most
ROUNDING = 2.0**-16
# The part of a long row, and the rounds, by which the first guess is found
_STRIDE, _GUESSES = 31, 2
# t -> mean(|w| >= t) / 2 has the slope 0.374 at its fixed point for normal weights: a step that
# long leads there
_STEP = 1 / (1 - 0.374)
# Thresholds in units of the guess
_AROUND = (0.65, 0.87, 0.95, 0.985, 1.015, 1.05, 1.15, 1.5, 2.7)
# Ratio of a bracket's ends from which it is narrowed again, and the least one that is looked at
_WIDE, _LEAST_RATIO = 1.5, 1e-3


class Bracket(NamedTuple):
    """Where the best threshold of each row can be; float32 (G, 1) each.

    Attributes:
        low: no better threshold is below.
        high: none is above.
    """

    low: Tensor
    high: Tensor


def excess(rows: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """R(t) of each row at its thresholds, and what R may be off by; float64 (G, P) each.

    Args:
        rows: float32 tensor (G, N).
        points: thresholds float32 (G, P), >= 0.
    """
    sums: list[list[Tensor]] = [[] for _ in range(points.shape[1])]
    size, larger = spare(rows), spare(rows)
    columns = [points[:, j : j + 1] for j in range(points.shape[1])]
    for part, *thresholds in pieces(rows, *columns):
        own, top = torch.abs(part, out=fitted(size, part)), fitted(larger, part)
        for threshold, found in zip(thresholds, sums, strict=True):
            found.append(torch.maximum(own, threshold, out=top).sum(dim=1, keepdim=True))
    total = torch.cat([row_sums(found, rows) for found in sums], dim=1).double()
    return total - rows.shape[1] * points.double(), total * ROUNDING


def bracket(rows: Tensor, mean: Tensor, peak: Tensor) -> Bracket:
    """Thresholds between which the best t of G(t) is, for finite rows.

    Args:
        rows: float32 tensor (G, N).
        mean: of |w|, float32 (G, 1).
        peak: largest |w|, float32 (G, 1).
    """
    around = torch.tensor(_AROUND, device=rows.device)
    points = torch.minimum(_guess(rows, mean) * around, peak)
    found, error = excess(rows, points)
    total = rows.shape[1] * mean.double()
    found = torch.cat([total, found, torch.zeros_like(total)], dim=1)
    error = torch.cat([total * ROUNDING, error, torch.zeros_like(total)], dim=1)
    points = torch.cat([torch.zeros_like(peak), points, peak], dim=1)
    low, high = _narrowed(rows, points, (found, error), torch.zeros_like(total))
    return Bracket(low, high)


def _narrowed(
    rows: Tensor, points: Tensor, known: tuple[Tensor, Tensor], reached: Tensor, rounds: int = 3
) -> Bracket:
    """The ends of the intervals between rising points (G, P) that can hold the best t.

    Rows whose ends are far from each other are looked at again, with points between these.

    Args:
        rows: float32 tensor (G, N).
        points: thresholds float32 (G, P).
        known: what `excess` says of them.
        reached: t R(t) that a row has somewhere, float64 (G, 1).
        rounds: how often at most.
    """
    found, error = known
    at = points.double()
    reached = torch.maximum(reached, (at * (found - error)).amax(dim=1, keepdim=True))
    possible = _most(at, found + error) >= reached
    low = points[:, :-1].masked_fill(~possible, torch.inf).amin(dim=1, keepdim=True)
    high = points[:, 1:].masked_fill(~possible, 0).amax(dim=1, keepdim=True)
    wide = (high > _WIDE * low).flatten().nonzero().flatten()
    if rounds > 1 and wide.numel():
        ends = low[wide], high[wide]
        share = torch.linspace(0, 1, points.shape[1], device=rows.device)
        between = ends[1] * (ends[0] / ends[1]).clamp_min(_LEAST_RATIO) ** (1 - share)
        between[:, :1], between[:, -1:] = ends
        own = rows if wide.numel() == rows.shape[0] else rows[wide]
        narrower = _narrowed(own, between, excess(own, between), reached[wide], rounds - 1)
        low[wide], high[wide] = narrower
    return Bracket(low, high)


def _most(at: Tensor, excess_: Tensor) -> Tensor:
    """Largest t R(t) under the chord of each interval, (G, P - 1) for (G, P) points."""
    left, right = at[:, :-1], at[:, 1:]
    fall = (excess_[:, :-1] - excess_[:, 1:]) / (right - left)
    # t (a - fall t) is largest at t = a / (2 fall); intervals of no length are their left end
    height = excess_[:, :-1] + fall * left
    best = torch.minimum(torch.maximum(height / (2 * fall), left), right)
    inner = (best * (height - fall * best)).nan_to_num_(nan=0.0)
    ends = torch.maximum(left * excess_[:, :-1], right * excess_[:, 1:])
    return torch.maximum(inner, ends)


def _guess(rows: Tensor, mean: Tensor) -> Tensor:
    """A threshold near the best one of each row, float32 (G, 1); of long rows from a part."""
    guess = 0.765 * mean  # of normal weights
    if rows.shape[1] > PIECE:
        _improve(rows[:, ::_STRIDE].abs(), guess, mean)
        return guess
    buffer = spare(rows)
    for part, own, mean_ in pieces(rows, guess, mean):
        _improve(torch.abs(part, out=fitted(buffer, part)), own, mean_)
    return guess


def _improve(size: Tensor, guess: Tensor, mean: Tensor) -> None:
    """Move the guesses (G, 1) towards half the mean of the magnitudes from them on, in place."""
    kept = torch.empty_like(size)
    for _ in range(_GUESSES):
        count = torch.ge(size, guess, out=kept).sum(dim=1, keepdim=True)
        half = kept.mul_(size).sum(dim=1, keepdim=True).div_(count.clamp_min_(1)).div_(2)
        guess.lerp_(half, _STEP).clamp_min_(0.3 * mean)
