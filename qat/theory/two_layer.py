"""The two-linear-layer model with binary activation: population loss, gradients, coarse gradients.

    y(Z, v, w) = v^T sigma(Z w),   sigma(x) = 1{x > 0},   rows of Z (m, n) i.i.d. N(0, I)
    loss       = (y(Z, v, w) - y(Z, v*, w*))^2 / 2,       ||w*|| = 1

f is the expected loss. Letters are the papers': v, v* (..., m); w, w* (..., n), w* a unit vector;
theta the angle between w and w*; c = 1 - 2 theta / pi; s = 1^T v*. All float64, any leading batch
dimensions. The expected coarse gradients are those of E[Z^T (mu'(Z w) * v) (y - y*)].

Source: arXiv:1903.05662; with v = v* fixed, arXiv:1808.05240.
"""

import math

import torch
from torch import Tensor

ROOT = math.sqrt(2 * math.pi)


def angle(w: Tensor, w_star: Tensor) -> Tensor:
    """Angle theta in [0, pi] between w and the unit vector w*, (...,); 0 at w = 0.

    Computed as 2 atan2(|a - b|, |a + b|) of the unit vectors, accurate at both ends, where an arc
    cosine loses half of the digits.
    """
    a = unit(w)
    theta = 2 * torch.atan2(_norm(a - w_star), _norm(a + w_star))
    return torch.where(_norm(w) > 0, theta, torch.zeros_like(theta))


def unit(w: Tensor) -> Tensor:
    """W / ||w||, (..., n); 0 at w = 0."""
    size = w.norm(dim=-1, keepdim=True)
    return w / torch.where(size > 0, size, torch.ones_like(size))


def tangent(w: Tensor, w_star: Tensor) -> Tensor:
    """u, the unit vector of (I - w_hat w_hat^T) w*, (..., n); 0 where w* is parallel to w."""
    a = unit(w)
    across = w_star - _dot(a, w_star)[..., None] * a
    size = across.norm(dim=-1, keepdim=True)
    # below rounding the direction is noise: w and w* are parallel
    return torch.where(size > 1e-14, across / size.clamp(min=1e-300), torch.zeros_like(across))


def loss(v: Tensor, w: Tensor, v_star: Tensor, w_star: Tensor) -> Tensor:
    """Population loss f, (...,).

        f = (v^T A v - 2 v^T (c I + 1 1^T) v* + v*^T A v*) / 8,   A = I + 1 1^T

    At w = 0 the output is 0 (sigma(0) = 0) and f = v*^T A v* / 8.
    """
    c = cosine_like(w, w_star)
    cross = c * _dot(v, v_star) + v.sum(-1) * v_star.sum(-1)
    active = (_norm(w) > 0).to(v.dtype)
    return (active * (_energy(v) - 2 * cross) + _energy(v_star)) / 8


def cosine_like(w: Tensor, w_star: Tensor) -> Tensor:
    """The papers' c = 1 - 2 theta / pi in [-1, 1], (...,)."""
    return 1 - 2 * angle(w, w_star) / math.pi


def gradient_v(v: Tensor, w: Tensor, v_star: Tensor, w_star: Tensor) -> Tensor:
    """Gradient of f in v, (..., m); w != 0.

    (A v - (c I + 1 1^T) v*) / 4
    """
    c = cosine_like(w, w_star)[..., None]
    return (v - c * v_star + (v.sum(-1) - v_star.sum(-1))[..., None]) / 4


def gradient_w(v: Tensor, w: Tensor, v_star: Tensor, w_star: Tensor) -> Tensor:
    """Gradient of f in w, (..., n), for 0 < theta < pi; 0 is given at both ends, where f bends.

    -(v^T v*) / (2 pi ||w||) u
    """
    size = _dot(v, v_star) / (2 * math.pi * _norm(w))
    return -size[..., None] * tangent(w, w_star)


def coarse_identity(v: Tensor, w: Tensor, v_star: Tensor, w_star: Tensor) -> Tensor:
    """Expected coarse gradient with mu' = 1, (..., n).

    (||v||^2 w_hat - (v^T v*) w*) / sqrt(2 pi)
    """
    own, other = v.square().sum(-1)[..., None], _dot(v, v_star)[..., None]
    return (own * unit(w) - other * w_star) / ROOT


def coarse_relu(v: Tensor, w: Tensor, v_star: Tensor, w_star: Tensor) -> Tensor:
    """Expected coarse gradient with mu' = 1{x > 0}, (..., n).

        ((||v||^2 + (1^T v)^2 - s 1^T v) w_hat - (v^T v*) w*) / (2 sqrt(2 pi))

    Equal to the paper's form in the half angle, because ||w_hat + w*|| = 2 cos(theta / 2).
    """
    other = _dot(v, v_star)
    own = h_value(v, v_star) - other
    return (own[..., None] * unit(w) - other[..., None] * w_star) / (2 * ROOT)


def coarse_clipped_relu(v: Tensor, w: Tensor, v_star: Tensor, w_star: Tensor) -> Tensor:
    """Expected coarse gradient with mu' = 1{0 < x < 1}, (..., n).

    (h / 2) kappa w_hat - (v^T v*) (b1 w_hat + b2 u), with T = 1 / ||w|| and

        kappa = (1 - exp(-T^2 / 2)) / sqrt(2 pi)
        b1    = 1 / (2 sqrt(2 pi)) - phi(T) Phi(T cot theta)
                + cos(theta) (Phi(T / sin theta) - 1/2) / sqrt(2 pi)
        b2    = sin(theta) (Phi(T / sin theta) - 1/2) / sqrt(2 pi)
    """
    theta, t = angle(w, w_star), 1 / _norm(w)
    # the limits at theta = 0 and pi: Phi of plus or minus infinity
    sine = torch.sin(theta).clamp(min=1e-300)
    half = normal_cdf(t / sine) - 0.5
    kappa = -torch.expm1(-t.square() / 2) / ROOT
    b1 = (0.5 + torch.cos(theta) * half) / ROOT
    b1 = b1 - normal_density(t) * normal_cdf(t * torch.cos(theta) / sine)
    b2 = torch.sin(theta) * half / ROOT
    along = h_value(v, v_star) / 2 * kappa - _dot(v, v_star) * b1
    across = -_dot(v, v_star) * b2
    return along[..., None] * unit(w) + across[..., None] * tangent(w, w_star)


def h_value(v: Tensor, v_star: Tensor) -> Tensor:
    """The scalar h = ||v||^2 + (1^T v)^2 - s 1^T v + v^T v*, (...,); 0 at the spurious minimum."""
    total = v.sum(-1)
    return _energy(v) - v_star.sum(-1) * total + _dot(v, v_star)


def normal_cdf(x: Tensor) -> Tensor:
    """Phi(x), accurate in the lower tail."""
    return torch.erfc(-x / math.sqrt(2)) / 2


def normal_density(x: Tensor) -> Tensor:
    """phi(x)."""
    return torch.exp(-x.square() / 2) / ROOT


def _energy(v: Tensor) -> Tensor:
    """v^T A v = ||v||^2 + (1^T v)^2."""
    return v.square().sum(-1) + v.sum(-1).square()


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(dim=-1)


def _norm(w: Tensor) -> Tensor:
    size: Tensor = w.norm(dim=-1)
    return size
