"""Ternary grid, exact least squares."""

import torch
from torch import Tensor
from torch.nn import functional as F

from qat.functional.excess import bracket
from qat.functional.grid import keep_from
from qat.functional.rows import (
    PIECE,
    by_piece,
    fitted,
    is_plain_cpu,
    means_and_peaks,
    pieces,
    row_sums,
    spare,
)
from qat.functional.sorting import between, falling

# Shorter rows are sorted whole: the search for a bracket costs more than it spares
_SORT_BELOW = PIECE
# Sorted magnitudes whose sum is looked at before each of them is
_BLOCK = 64
# Relative; far above the rounding of float64 sums, far below any objective that matters
_SLACK = 1e-9


@torch.no_grad()
def fit_ternary(
    rows: Tensor, *, out: Tensor | None = None, scaled: bool = False
) -> tuple[Tensor, Tensor]:
    """Nearest point of {-s, 0, +s}^N, s > 0, to each row, in O(N log N) at worst.

    With |w| sorted down and S_k the sum of the k largest,

        k* = argmax_k S_k^2 / k;   s = S_k* / k*;   value = sign(w) for the k* largest, else 0

    On CPU long rows are not sorted whole: `excess.bracket` proves between which magnitudes the
    k*-th is, and only these are sorted. The result is the same optimum, and the same bits wherever
    float64 holds the sums S_k exactly: k* max|w| <= 2^29 of the smallest kept is enough.

    Args:
        rows: float tensor (G, N).
        out: float32 tensor (G, N) for the values; None takes new memory.
        scaled: whether values come multiplied by their scale, as Q(w).

    Returns:
        Values float32 (G, N) and scale float32 (G, 1).

    Source: arXiv:1801.06313.
    """
    rows = rows.float()
    values = torch.empty_like(rows) if out is None else out
    if by_piece(rows):
        pairs = pieces(rows, values)
        return values, torch.cat([fit_ternary(r, out=v, scaled=scaled)[1] for r, v in pairs])
    is_long = rows.shape[1] > _SORT_BELOW and is_plain_cpu(rows)
    found = _by_bracket(rows) if is_long else None
    cut, scale = found or _by_sorting(rows)
    return keep_from(rows, cut, values, scale=scale if scaled else None), scale


def _by_sorting(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest kept magnitude and scale of the best k, float32 (G, 1) each, of whole rows."""
    padding = -rows.shape[1] % _BLOCK
    # zeros never raise S_k^2 / k
    size = F.pad(rows.abs(), (0, padding)) if padding else rows.abs()
    none = rows.new_zeros(rows.shape[0], 1, dtype=torch.float64)
    cut, scale, _ = _best_prefix(falling(size), none, none)
    return cut, scale


def _best_prefix(down: Tensor, count: Tensor, total: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Smallest kept magnitude, scale and objective S_k^2 / k of the best k.

    Inside a block of n magnitudes <= v below (k_0, S_0), S_k <= S_0 + (k - k_0) v, and the square
    of that over k is convex in k, so at most the larger of its values at both ends of the block. A
    block whose bound is below an objective already met at some block's end cannot hold k*.

    Args:
        down: magnitudes (G, P), falling, P a multiple of the block; zeros may pad them.
        count: float64 (G, 1), number of larger magnitudes, all kept.
        total: float64 (G, 1), their sum.

    Returns:
        float32, float32 and float64 (G, 1).
    """
    exact = down.double()
    if is_plain_cpu(down) and down.shape[1] > 4 * _BLOCK:
        exact, count, total = _promising(down, exact, count, total)
    sums = exact.cumsum(dim=1).add_(total)
    order = torch.arange(1, exact.shape[1] + 1, dtype=torch.float64, device=down.device)
    counts = count + order
    objective = sums.square().div_(counts)
    best = objective.argmax(dim=1, keepdim=True)
    scale = sums.gather(1, best) / counts.gather(1, best)
    return exact.gather(1, best).float(), scale.float(), objective.gather(1, best)


def _promising(
    down: Tensor, exact: Tensor, count: Tensor, total: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The blocks among which k* is, as arguments of `_best_prefix` in float64."""
    blocks = exact.view(exact.shape[0], -1, _BLOCK).sum(dim=2)
    upto = blocks.cumsum(dim=1).add_(total)
    before = upto - blocks
    number = torch.arange(blocks.shape[1], dtype=torch.float64)
    start = count + number * _BLOCK
    reached = upto.square().div_(start + _BLOCK).amax(dim=1, keepdim=True)
    end = (before + _BLOCK * down[:, ::_BLOCK]).square_().div_(start + _BLOCK)
    bound = torch.maximum(before.square().div_(start.clamp_min(1)), end)
    # negated, so that a row with NaN keeps all its blocks and NaN reaches the scale
    ruled_out = bound < reached * (1 - _SLACK)
    last = number.expand_as(bound).masked_fill(ruled_out, -1).amax(dim=1, keepdim=True)
    most = blocks.shape[1]
    first = number.expand_as(bound).masked_fill(ruled_out, most).amin(dim=1, keepdim=True)
    width = int((last - first).amax()) + 1
    first = first.clamp_max_(most - width).long()
    place = first * _BLOCK + torch.arange(width * _BLOCK)
    return exact.gather(1, place), start.gather(1, first), before.gather(1, first)


def _by_bracket(rows: Tensor) -> tuple[Tensor, Tensor] | None:
    """What `_by_sorting` gives, from the magnitudes alone among which the last one kept is.

    The best k keeps |w| >= t with t = S_k / (2 k) in the bracket: all that is above the bracket,
    and a part of what is inside.

    Returns:
        Cut and scale, float32 (G, 1); None for rows with NaN, infinity or sums that overflow.
    """
    window = _window(rows)
    if window is None:
        return None
    packed, count, total, edge = window
    cut, scale, objective = _best_prefix(falling(packed), count, total)
    # nothing inside is kept
    alone = total.square() / count.clamp_min(1) >= objective
    above = (total / count.clamp_min(1)).float()
    return torch.where(alone, edge, cut), torch.where(alone, above, scale)


def _window(rows: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
    """Magnitudes (G, P) inside the bracket; number, sum and lower end (G, 1) of those above."""
    mean, peak = means_and_peaks(rows)
    if not bool(mean.isfinite().all()):
        return None
    low, high = bracket(rows, mean, peak)
    found, lengths, counts, totals = [], [], [], []
    buffer, above, exact = spare(rows), spare(rows), spare(rows, torch.float64)
    for part, bottom, top in pieces(rows, low, high):
        size, larger = torch.abs(part, out=fitted(buffer, part)), fitted(above, part)
        found.append(between(size, bottom, top))
        within = torch.ge(size, bottom, out=larger).sum(dim=1, keepdim=True)
        counts.append(torch.gt(size, top, out=larger).sum(dim=1, keepdim=True).double())
        lengths.append(within - counts[-1])
        kept = fitted(exact, part).copy_(larger.mul_(size))
        totals.append(kept.sum(dim=1, keepdim=True))
    packed = _packed(torch.cat(found), row_sums(lengths, rows).long())
    edge = torch.nextafter(high, torch.full_like(high, torch.inf))
    return packed, row_sums(counts, rows), row_sums(totals, rows), edge


def _packed(found: Tensor, lengths: Tensor) -> Tensor:
    """Magnitudes (P,) in their rows, `lengths` (G, 1) of each; zeros fill rows that have fewer."""
    width = max(1, int(lengths.max()))
    packed = found.new_zeros(lengths.shape[0], width + -width % _BLOCK)
    packed[torch.arange(packed.shape[1]) < lengths] = found
    return packed
