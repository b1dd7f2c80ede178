"""Two-linear-layer model with binary activation: population loss, gradients, coarse gradients.

    y(Z, v, w) = v^T sigma(Z w),   sigma(x) = 1{x > 0},   rows of Z (m, n) i.i.d. N(0, I)
    loss       = (y(Z, v, w) - y(Z, v*, w*))^2 / 2,       ||w*|| = 1

f is the expected loss. Letters are the papers': v, v* (..., m); w, w* (..., n), w* a unit vector;
w_hat = w / ||w||; theta the angle between w and w*; c = 1 - 2 theta / pi; s = 1^T v*. All float64,
any leading batch dimensions. An expected coarse gradient is E[Z^T (mu'(Z w) * v) (y - y*)].

Where the formulas end: f has a kink at theta = 0 and pi; the direction u, and with it df/dw, is 0
there. At w = 0 the output is 0, for sigma(0) = 0, and all functions follow the definitions: f is
v*^T A v* / 8, its gradients are 0, mu'(0) is that of the estimator; w_hat = 0, theta = pi / 2 and
u = w*.

Source: arXiv:1903.05662; with v = v* fixed, arXiv:1808.05240.
"""

import math

import torch
from torch import Tensor

ROOT = math.sqrt(2 * math.pi)

# below, the part of w* across w is rounding, not a direction
_PARALLEL = 1e-14
# stands for 1 / 0 without being infinite: 0 * infinity is not a number
_TINY = 1e-300


def unit(w: Tensor) -> Tensor:
    """Direction w_hat = w / ||w||, (..., n); 0 at w = 0."""
    size = w.norm(dim=-1, keepdim=True)
    return w / torch.where(size > 0, size, torch.ones_like(size))


def angle(w: Tensor, w_star: Tensor) -> Tensor:
    """Angle theta in [0, pi] between w and the unit vector w*, (...,); pi / 2 at w = 0.

    2 atan2(||w_hat - w*||, ||w_hat + w*||) keeps all digits at both ends; an arc cosine loses half.
    """
    a = unit(w)
    return 2 * torch.atan2((a - w_star).norm(dim=-1), (a + w_star).norm(dim=-1))


def tangent(w: Tensor, w_star: Tensor) -> Tensor:
    """Unit vector u of (I - w_hat w_hat^T) w*, (..., n); 0 where w* is parallel to w."""
    a = unit(w)
    across = w_star - _dot(a, w_star)[..., None] * a
    size = across.norm(dim=-1, keepdim=True)
    return torch.where(size > _PARALLEL, across / size.clamp(min=_TINY), torch.zeros_like(across))


def sign_correlation(w: Tensor, w_star: Tensor) -> Tensor:
    """The papers' c = 1 - 2 theta / pi = E[sign(z^T w) sign(z^T w*)] in [-1, 1], (...,)."""
    return 1 - 2 * angle(w, w_star) / math.pi


def loss(v: Tensor, w: Tensor, v_star: Tensor, w_star: Tensor) -> Tensor:
    """Population loss f, (...,).

    (v^T A v - 2 v^T (c I + 1 1^T) v* + v*^T A v*) / 8,   A = I + 1 1^T
    v*^T A v* / 8                                          at w = 0
    """
    c = sign_correlation(w, w_star)
    cross = c * _dot(v, v_star) + v.sum(-1) * v_star.sum(-1)
    return (_active(w) * (_energy(v) - 2 * cross) + _energy(v_star)) / 8


def gradient_v(v: Tensor, w: Tensor, v_star: Tensor, w_star: Tensor) -> Tensor:
    """Gradient of f in v, (..., m): (A v - (c I + 1 1^T) v*) / 4; 0 at w = 0."""
    c = sign_correlation(w, w_star)[..., None]
    shift = (v.sum(-1) - v_star.sum(-1))[..., None]
    gradient: Tensor = _active(w)[..., None] * (v - c * v_star + shift) / 4
    return gradient


def gradient_w(v: Tensor, w: Tensor, v_star: Tensor, w_star: Tensor) -> Tensor:
    """Gradient of f in w, (..., n): -(v^T v*) / (2 pi ||w||) u; 0 at theta = 0, pi and at w = 0."""
    size = w.norm(dim=-1)
    slope: Tensor = _active(w) * _dot(v, v_star) / (2 * math.pi * size.clamp(min=_TINY))
    return -slope[..., None] * tangent(w, w_star)


def coarse_identity(v: Tensor, w: Tensor, v_star: Tensor, w_star: Tensor) -> Tensor:
    """Expected coarse gradient with mu' = 1, (..., n).

    (||v||^2 w_hat - (v^T v*) w*) / sqrt(2 pi)
    """
    own, other = v.square().sum(-1)[..., None], _dot(v, v_star)[..., None]
    return (own * unit(w) - other * w_star) / ROOT


def coarse_relu(v: Tensor, w: Tensor, v_star: Tensor, w_star: Tensor) -> Tensor:
    """Expected coarse gradient with mu' = 1{x > 0}, (..., n); 0 at w = 0.

        ((||v||^2 + (1^T v)^2 - s 1^T v) w_hat - (v^T v*) w*) / (2 sqrt(2 pi))

    Equal to the paper's form in the half angle, because ||w_hat + w*|| = 2 cos(theta / 2). With
    v = v* fixed it is the gradient of ||v||^2 (||w|| - w^T w*) / (2 sqrt(2 pi)).
    """
    other = _dot(v, v_star)
    own = h_value(v, v_star) - other
    total = own[..., None] * unit(w) - other[..., None] * w_star
    return _active(w)[..., None] * total / (2 * ROOT)


def coarse_clipped_relu(v: Tensor, w: Tensor, v_star: Tensor, w_star: Tensor) -> Tensor:
    """Expected coarse gradient with mu' = 1{0 < x <= 1}, (..., n); 0 at w = 0.

    (h / 2) kappa w_hat - (v^T v*) (b1 w_hat + b2 u), with T = 1 / ||w|| and

        kappa = (1 - exp(-T^2 / 2)) / sqrt(2 pi)
        b1    = 1 / (2 sqrt(2 pi)) - phi(T) Phi(T cot theta)
                + cos(theta) (Phi(T / sin theta) - 1/2) / sqrt(2 pi)
        b2    = sin(theta) (Phi(T / sin theta) - 1/2) / sqrt(2 pi)
    """
    theta, t = angle(w, w_star), 1 / w.norm(dim=-1).clamp(min=_TINY)
    cosine, sine = torch.cos(theta), torch.sin(theta).clamp(min=_TINY)
    half = torch.erf(t / sine / math.sqrt(2)) / 2
    kappa = -torch.expm1(-t.square() / 2) / ROOT
    b1 = (0.5 + cosine * half) / ROOT - normal_density(t) * normal_cdf(t * (cosine / sine))
    other = _dot(v, v_star)
    along = h_value(v, v_star) / 2 * kappa - other * b1
    across = -other * sine * half / ROOT
    total = along[..., None] * unit(w) + across[..., None] * tangent(w, w_star)
    return _active(w)[..., None] * total


def h_value(v: Tensor, v_star: Tensor) -> Tensor:
    """The scalar h = ||v||^2 + (1^T v)^2 - s 1^T v + v^T v*, (...,).

    0 at the saddles and the spurious minima, 2 ||v*||^2 at v = v*.
    """
    return _energy(v) - v_star.sum(-1) * v.sum(-1) + _dot(v, v_star)


def normal_cdf(x: Tensor) -> Tensor:
    """Phi(x), accurate in the lower tail."""
    return torch.erfc(-x / math.sqrt(2)) / 2


def normal_density(x: Tensor) -> Tensor:
    """Density phi(x) of N(0, 1)."""
    return torch.exp(-x.square() / 2) / ROOT


def _active(w: Tensor) -> Tensor:
    """1 where w != 0, else 0, (...,)."""
    return (w != 0).any(dim=-1).to(w.dtype)


def _energy(v: Tensor) -> Tensor:
    """v^T A v = ||v||^2 + (1^T v)^2."""
    return v.square().sum(-1) + v.sum(-1).square()


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1)
