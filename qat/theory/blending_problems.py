"""Problems of experiment c: quadratics, and the two-linear-layer model with v = v*."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from qat.theory import two_layer as model
from qat.theory.blended_descent import Problem

# points on the way from w to w' at which the curvature is bounded
_POINTS = 17


def quadratics(count: int, n: int, *, generator: torch.Generator) -> Problem:
    """Random f(w) = (w - a)^T H (w - a) / 2, L = 1 the largest eigenvalue of H, f(0) = 1."""
    root = torch.randn(count, n, n, generator=generator, dtype=torch.float64)
    h = root @ root.mT
    h = h / torch.linalg.eigvalsh(h)[:, -1, None, None]
    a = torch.randn(count, n, generator=generator, dtype=torch.float64)
    a = a / _form(h, a).sqrt()[:, None]
    return Problem(
        value=lambda w: _form(h, w - a),
        gradient=lambda w: torch.einsum("pij,pj->pi", h, w - a),
        smoothness=lambda w, new: torch.ones(len(w), dtype=w.dtype),
    )


def angle_loss(w_star: Tensor) -> Problem:
    """The model with v = v* = 1, f = theta / (2 pi), with its gradient; w* (P, n).

    The Hessian at w has the norm max(1, |cot theta|) / (2 pi ||w||^2): no bound at theta = 0.
    """
    v = torch.ones(len(w_star), 1, dtype=torch.float64)

    def curvature(w: Tensor) -> Tensor:
        theta = model.angle(w, w_star)
        bend = (torch.cos(theta) / torch.sin(theta).clamp(min=1e-300)).abs().clamp(min=1)
        return bend / (2 * math.pi * w.square().sum(-1))

    return Problem(
        value=lambda w: model.loss(v, w, v, w_star),
        gradient=lambda w: model.gradient_w(v, w, v, w_star),
        smoothness=lambda w, new: _largest(curvature, w, new),
    )


def relu_potential(w_star: Tensor) -> Problem:
    """Function F = (||w|| - w^T w*) / (2 sqrt(2 pi)): its gradient is f's coarse ReLU gradient.

    The Hessian at w has the norm 1 / (2 sqrt(2 pi) ||w||).
    """
    v = torch.ones(len(w_star), 1, dtype=torch.float64)
    return Problem(
        value=lambda w: (w.norm(dim=-1) - (w * w_star).sum(-1)) / (2 * model.ROOT),
        gradient=lambda w: model.coarse_relu(v, w, v, w_star),
        smoothness=lambda w, new: _largest(lambda x: 1 / (2 * model.ROOT * x.norm(dim=-1)), w, new),
    )


def coarse_relu_loss(w_star: Tensor) -> Problem:
    """The loss f of `angle_loss` along the coarse ReLU gradient."""
    exact, potential = angle_loss(w_star), relu_potential(w_star)
    return Problem(value=exact.value, gradient=potential.gradient, smoothness=potential.smoothness)


def _form(h: Tensor, x: Tensor) -> Tensor:
    return torch.einsum("pi,pij,pj->p", x, h, x) / 2


def _largest(curvature: Callable[[Tensor], Tensor], w: Tensor, new: Tensor) -> Tensor:
    way = torch.linspace(0, 1, _POINTS, dtype=w.dtype)[:, None, None]
    return curvature(w + way * (new - w)).amax(dim=0)
