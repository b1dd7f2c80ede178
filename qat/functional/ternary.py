"""Ternary grid, exact least squares."""

import torch
from torch import Tensor

from qat.functional.grid import with_sign

# Shorter rows are sorted whole: their histogram costs more than it spares
_SORT_BELOW = 1024
_MOST_BINS = 4096
_ELEMENTS_PER_BIN = 8
# Of the peak's reciprocal; rows of denormal numbers end in one bin and are sorted whole
_SMALLEST_PEAK = 1e-30
# Relative; far above the rounding of float64 sums, far below any objective that matters
_SLACK = 1e-9


@torch.no_grad()
def fit_ternary(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Nearest point of {-s, 0, +s}^N, s > 0, to each row, in O(N log N) at worst.

    With |w| sorted down and S_k the sum of the k largest,

        k* = argmax_k S_k^2 / k;   s = S_k* / k*;   value = sign(w) for the k* largest, else 0

    On CPU long rows are not sorted whole: `_window` finds the few elements among which the k*-th
    can be, and only these are sorted. The result is the same optimum.

    Args:
        rows: float tensor (G, N).

    Returns:
        Values float32 (G, N) and scale float32 (G, 1).

    Source: arXiv:1801.06313.
    """
    rows = rows.float()
    size = rows.abs()
    if size.shape[1] >= _SORT_BELOW and size.device.type == "cpu":
        cut, scale = _best_prefix(*_window(size))
    else:
        none = size.new_zeros(size.shape[0], 1, dtype=torch.float64)
        cut, scale = _best_prefix(size, none, none)
    return with_sign(size.ge_(cut), rows), scale


def _best_prefix(size: Tensor, count: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest kept magnitude and scale of the best k, given what surely is kept.

    Args:
        size: magnitudes (G, P) to choose from; zeros may pad it, as they never raise S_k^2 / k.
        count: float64 (G, 1), number of larger magnitudes, all kept.
        total: float64 (G, 1), their sum.

    Returns:
        Cut and scale, float32 (G, 1) each.
    """
    falling = size.sort(dim=1, descending=True).values
    sums = falling.cumsum(dim=1, dtype=torch.float64).add_(total)
    counts = count + torch.arange(1, size.shape[1] + 1, dtype=torch.float64, device=size.device)
    best = sums.square().div_(counts).argmax(dim=1, keepdim=True)
    return falling.gather(1, best), (sums.gather(1, best) / counts.gather(1, best)).float()


def _window(size: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Elements of each row among which the last one kept can be, and what lies above them.

    A histogram of the row from the peak down gives k and S at the bins' ends. Inside a bin of n
    magnitudes <= v below (k_0, S_0), S_k <= S_0 + (k - k_0) v, and the square of that over k is
    convex in k, so at most the larger of its values at both ends of the bin. A bin whose bound is
    below an objective already met at some bin's end cannot hold k*.

    Args:
        size: magnitudes (G, N).

    Returns:
        Arguments of `_best_prefix`.
    """
    place, edges = _places(size)
    counts, sums = histogram(place, size, edges.shape[1])
    upto, total = counts.cumsum(dim=1), sums.cumsum(dim=1)
    before, above = upto - counts, total - sums
    reached = total.square() / upto.clamp_min(1)
    start = above.square() / before.clamp_min(1)
    bound = torch.maximum(start, (above + counts * edges).square_() / upto.clamp_min(1))
    # negated, so that a row with NaN keeps all its bins and NaN reaches the scale
    ruled_out = bound < reached.amax(dim=1, keepdim=True) * (1 - _SLACK)
    number = torch.arange(edges.shape[1], dtype=torch.float64).expand_as(bound)
    first = number.masked_fill(ruled_out, edges.shape[1]).amin(dim=1, keepdim=True).long()
    last = number.masked_fill(ruled_out, -1).amax(dim=1, keepdim=True).long()
    inside = (place >= first).logical_and_(place <= last)
    return _pack(size, inside), before.gather(1, first), above.gather(1, first)


def _places(size: Tensor) -> tuple[Tensor, Tensor]:
    """Bin number int64 (G, N), 0 at the row's peak, and float64 (G, B) upper ends of the bins."""
    bins = min(_MOST_BINS, size.shape[1] // _ELEMENTS_PER_BIN)
    peak = size.amax(dim=1, keepdim=True)
    per_unit = bins / peak.clamp_min(_SMALLEST_PEAK)
    # every step is monotone in |w|, rounding included; NaN (and infinity) go to bin 0
    place = torch.sub(peak, size).mul_(per_unit).nan_to_num_(nan=0.0).long()
    # one bin up: room for the rounding of `place`
    number = torch.arange(-1, bins, dtype=torch.float64)
    return place, peak.double() - number / per_unit.double()


def histogram(place: Tensor, size: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    """Count and sum of the magnitudes `size` (G, N) that have each `place`, an int64 bin number.

    Returns:
        Two float64 tensors (G, bins).
    """
    empty = size.new_zeros(size.shape[0], bins, dtype=torch.float64)
    counts = empty.scatter_add(1, place, empty.new_ones(()).expand_as(size))
    return counts, empty.scatter_add_(1, place, size.double())


def _pack(size: Tensor, inside: Tensor) -> Tensor:
    """The magnitudes that are `inside`, left in their row; zeros fill rows that have fewer."""
    counts = inside.sum(dim=1, keepdim=True)
    packed = size.new_zeros(size.shape[0], int(counts.max()))
    packed[torch.arange(packed.shape[1]) < counts] = size[inside]
    return packed
