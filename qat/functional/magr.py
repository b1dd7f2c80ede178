"""MagR: weights of smaller magnitude that keep the outputs of their layer."""

import torch
from torch import Tensor


def clipped_to_ball(rows: Tensor, radius: float) -> Tensor:
    """Proximal map of the l-infinity norm: the largest magnitudes of each row, cut to one height.

        prox(v) = argmin_u |u - v|^2 / 2 + t max|u| = clip(v, -tau, tau),   sum (|v| - tau)_+ = t
                = v - (projection of v on the l1 ball of radius t);   0 where sum |v| <= t

    Args:
        rows: v (..., N), float.
        radius: t >= 0; 0 gives v.

    Returns:
        Of the same shape.

    Source: Moreau's decomposition; the projection by sorting.
    """
    size = rows.abs().sort(dim=-1, descending=True).values
    count = torch.arange(1, rows.shape[-1] + 1, device=rows.device, dtype=rows.dtype)
    # of the k largest: the height at which t of them is cut off
    height = (size.cumsum(dim=-1) - radius) / count
    cut = (size > height).sum(dim=-1, keepdim=True).clamp_min(1)
    tau = height.gather(-1, cut - 1).clamp_min(0)
    return torch.minimum(torch.maximum(rows, -tau), tau)


@torch.no_grad()
def magr(weight: Tensor, gram: Tensor, *, alpha: float = 1e-3, rounds: int = 150) -> Tensor:
    """MagR: the weights near the float ones whose largest magnitudes are small.

        minimise  (w - w0)' H (w - w0) / (2 lambda) + alpha max|w|,   lambda = largest eigenvalue
        each round:   v = w - H (w - w0) / lambda;   w = prox of alpha max|.| at v

    Inputs that nearly depend on each other leave room for that. It never ends with a larger
    max|w|, and the outputs move by at most |X (w - w0)| <= sqrt(2 alpha lambda max|w0|).

    Args:
        weight: rows w0 (G, R, N), float.
        gram: H = X'X (G, N, N).
        alpha: weight of the penalty, >= 0; 0 gives w0. In units of lambda, as released code has it.
        rounds: >= 0; 150 in the paper.

    Returns:
        Of the shape of `weight`.

    Source: arXiv:2406.00800.
    """
    largest = torch.linalg.eigvalsh(gram)[:, -1].view(-1, 1, 1)
    step = gram / largest.masked_fill(largest <= 0, 1)
    w = weight
    for _ in range(rounds):
        w = clipped_to_ball(w - (w - weight) @ step, alpha)
    return w
