"""Stationary points of the two-linear-layer model: saddles, spurious minima, the reduced loss.

Letters as in `qat.theory.two_layer`: c = 1 - 2 theta / pi, s = 1^T v*. v* is (..., m).

Source: arXiv:1903.05662.
"""

import math

import torch
from torch import Tensor


def best_v(c: Tensor, v_star: Tensor) -> Tensor:
    """The v that minimises f at the angle of c: c v* + s (1 - c) / (m + 1) 1, (..., m)."""
    lift = v_star.sum(-1) * (1 - c) / (v_star.shape[-1] + 1)
    return c[..., None] * v_star + lift[..., None]


def reduced_loss(c: Tensor, v_star: Tensor) -> Tensor:
    """Min over v of f at the angle of c, (...,).

    (1 - c) / 8 * ((1 + c) ||v*||^2 + (1 - c) s^2 / (m + 1))
    """
    energy, lift = v_star.square().sum(-1), _lift(v_star)
    return (1 - c) / 8 * ((1 + c) * energy + (1 - c) * lift)


def has_spurious_minimum(v_star: Tensor) -> Tensor:
    """Whether saddles and spurious minima exist: s^2 < (m + 1) / 2 ||v*||^2, bool (...,)."""
    return _lift(v_star) < v_star.square().sum(dim=-1) / 2


def spurious_v(v_star: Tensor) -> Tensor:
    """V at the spurious minimum, where w points along -w*: 2 s / (m + 1) 1 - v*, (..., m)."""
    return 2 * (v_star.sum(-1) / (v_star.shape[-1] + 1))[..., None] - v_star


def spurious_loss(v_star: Tensor) -> Tensor:
    """F at the spurious minimum, s^2 / (2 (m + 1)), (...,)."""
    return _lift(v_star) / 2


def saddle_angle(v_star: Tensor) -> Tensor:
    """Theta of the saddles, with v = best_v there; only where `has_spurious_minimum`, (...,).

    theta = (pi / 2) (m + 1) ||v*||^2 / ((m + 1) ||v*||^2 - s^2)
    """
    energy = v_star.square().sum(-1)
    theta: Tensor = math.pi / 2 * energy / (energy - _lift(v_star))
    return theta


def direction(w_star: Tensor, theta: Tensor) -> Tensor:
    """A unit vector at the angle theta from w*, (..., n); in the plane of the first other axis."""
    axis = torch.zeros_like(w_star)
    axis.scatter_(-1, w_star.abs().argmin(dim=-1, keepdim=True), 1.0)
    across = axis - (axis * w_star).sum(-1, keepdim=True) * w_star
    across = across / across.norm(dim=-1, keepdim=True)
    turned: Tensor = torch.cos(theta)[..., None] * w_star + torch.sin(theta)[..., None] * across
    return turned


def _lift(v_star: Tensor) -> Tensor:
    """s^2 / (m + 1)."""
    lift: Tensor = v_star.sum(-1).square() / (v_star.shape[-1] + 1)
    return lift
