"""COMQ: coordinate descent on the codes of a weight that keeps the outputs of its layer."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

Order = Literal["cyclic", "greedy"]


def output_error(weight: Tensor, other: Tensor, gram: Tensor) -> Tensor:
    """Squared error of a layer's outputs, of each output channel by itself.

        |X (w - v)|^2 = (w - v)' H (w - v),   H = X'X

    Args:
        weight: rows w (G, R, N), the R output channels of each of G groups.
        other: rows v of the same shape.
        gram: H (G, N, N), symmetric, positive semidefinite.

    Returns:
        (G, R, 1), >= 0 but for rounding.
    """
    rest = weight - other
    return (rest @ gram * rest).sum(dim=2, keepdim=True)


@torch.no_grad()
def comq(
    weight: Tensor,
    gram: Tensor,
    scale: Tensor,
    levels: Tensor,
    *,
    start: Tensor | None = None,
    sweeps: int = 3,
    order: Order = "cyclic",
    moves_scale: bool = True,
    allowed: Callable[[Tensor], Tensor] = lambda scale: scale,
) -> tuple[Tensor, Tensor]:
    """COMQ: levels and scale that keep a layer's outputs, found code by code.

        minimise  |X (w - s z)|^2 = (w - s z)' H (w - s z),   z on the levels,   H = X'X
        for each i in turn:   t = q_i + (H (w - q))_i / H_ii;   z_i = level nearest to t / s
        after each sweep:     s = <w, H z> / <z, H z>,   over all rows if they share one scale

    q = s z starts as the float weights, so that the first sweep hands the error of each code on to
    the codes after it; from then on neither a code nor a scale raises the error. All rows move at
    once. For an input that is always 0 (H_ii = 0) it is the level nearest to w_i / s.

    Unlike in the paper, scales start where the caller says, and levels are those of any grid.

    Args:
        weight: rows w (G, R, N), float: R output channels of each of G groups, N weights in each.
        gram: H (G, N, N), symmetric, positive semidefinite.
        scale: where s starts, >= 0, (G, R, 1), or (1, 1, 1) for one scale of all rows.
        levels: of the grid in units of the scale, (L,), rising.
        start: where q starts, of the shape of `weight`; None for `weight`.
        sweeps: over all codes, >= 1; 3 or 4 suffice as a rule.
        order: cyclic takes inputs as they stand; greedy, in each row, by falling |x_i| |w_i|.
        moves_scale: False keeps the scale, as released code does.
        allowed: the scale that a grid has in place of the best one.

    Returns:
        Levels z (G, R, N) and scale s of the shape of `scale`.

    Source: arXiv:2403.07134; the released code keeps the scale and sweeps once.
    """
    q = (weight if start is None else start).clone()
    rest, z = weight - q, torch.zeros_like(weight)
    size = gram.diagonal(dim1=1, dim2=2).unsqueeze(1)
    turns = _turns(weight, size, order)
    group = torch.arange(len(gram), device=gram.device).unsqueeze(1)
    # of an input that is always 0 the whole column of H is
    norm = size.masked_fill(size == 0, 1).expand_as(weight)
    middles = (levels[1:] + levels[:-1]) / 2
    for _ in range(sweeps):
        divisor = scale.masked_fill(scale == 0, 1)
        for i in turns.unbind(dim=2):
            column, at = gram[group, i], i.expand(weight.shape[:2]).unsqueeze(2)
            own = q.gather(2, at)
            target = own + (rest * column).sum(dim=2, keepdim=True) / norm.gather(2, at)
            level = levels[torch.bucketize(target / divisor, middles, right=True)]
            z.scatter_(2, at, level)
            q.scatter_(2, at, level * scale)
            rest.scatter_add_(2, at, own - level * scale)
        if moves_scale:
            scale = allowed(fitted_scale(weight, z, gram, scale))
            q = z * scale
            rest = weight - q
    return z, scale


def _turns(weight: Tensor, size: Tensor, order: Order) -> Tensor:
    """Inputs in the order of their turns: (1, 1, N) for all rows alike, or (G, R, N)."""
    if order == "cyclic":
        return torch.arange(weight.shape[2], device=weight.device).view(1, 1, -1)
    return (size.sqrt() * weight.abs()).argsort(dim=2, descending=True, stable=True)


def fitted_scale(weight: Tensor, z: Tensor, gram: Tensor, scale: Tensor) -> Tensor:
    """Least-squares scale of levels for a layer's outputs.

        s = <w, H z> / <z, H z>,   over all rows if they share one scale

    Args:
        weight: rows w (G, R, N).
        z: levels (G, R, N).
        gram: H (G, N, N).
        scale: kept where the quotient is none or not above 0; its shape says what is shared.

    Returns:
        Of the shape of `scale`.
    """
    seen = z @ gram
    match, energy = ((v * seen).sum(dim=2, keepdim=True) for v in (weight, z))
    if scale.numel() == 1:
        match, energy = match.sum().view(1, 1, 1), energy.sum().view(1, 1, 1)
    found = match / energy
    return torch.where(found.isfinite() & (found > 0), found, scale)
