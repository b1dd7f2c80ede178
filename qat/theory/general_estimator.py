"""Expected coarse gradient of any estimator in the two-linear-layer model, by quadrature.

For a slope psi that may be nonzero on both sides of 0, with z = x w_hat + y u + ...,

    E g = [ ((1^T v)^2 - ||v||^2 - s 1^T v + v^T v*) kappa0 / 2 + ||v||^2 kappa+ ] w_hat
          - (v^T v*) (b1 w_hat + b2 u)

    kappa0 = E[x psi(||w|| x)]                    kappa+ = E[x psi(||w|| x) 1{x > 0}]
    b1     = E[x psi(||w|| x) Phi(x cot theta)]   b2     = E[psi(||w|| x) phi(x cot theta)]

over x ~ N(0, 1): hidden units i and j != i are independent, which leaves kappa0, and unit i with
itself gives kappa+ and b. Where psi = 0 for x < 0, kappa0 = kappa+ and the first bracket is h / 2.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from qat.functional.stairs import relu_stairs
from qat.functional.ste import Sharpness, coarse_slope
from qat.names import Derivative
from qat.theory.two_layer import angle, normal_cdf, normal_density, tangent, unit

Slope = Callable[[Tensor], Tensor]

# beyond, the normal density is below 1e-31
_END = 12.0
# where a member of the family jumps or bends around 1{x > 0}: ends of range and cell, ReSTE's m, t
_KINKS = (-1.0, -0.75, -0.5, -0.05, 0.05, 0.5, 0.75, 1.0)
# panels halve towards 0, where Phi(x cot theta) turns within a width of tan(theta)
_HALVINGS = 45
_NODES = 24


def family_slope(name: Derivative, *, sharpness: Sharpness | None = None) -> Slope:
    """Slope of a member of the family around the activation 1{x > 0}."""
    stairs = relu_stairs(1)
    return lambda x: coarse_slope(x, name, stairs=stairs, sharpness=sharpness)


def coarse_general(v: Tensor, w: Tensor, v_star: Tensor, w_star: Tensor, *, slope: Slope) -> Tensor:
    """Expected coarse gradient (..., n) of the estimator with derivative `slope`; w != 0.

    Args:
        v: (..., m) float64.
        w: (..., n) float64.
        v_star: (..., m).
        w_star: (..., n), unit vectors.
        slope: psi, elementwise; its jumps should be among those of the family.
    """
    kappa_all, kappa_positive, b1, b2 = moments(w.norm(dim=-1), angle(w, w_star), slope=slope)
    total, own, other = v.sum(-1), v.square().sum(-1), (v * v_star).sum(-1)
    mixed = total.square() - own - v_star.sum(-1) * total + other
    along = mixed * kappa_all / 2 + own * kappa_positive - other * b1
    return along[..., None] * unit(w) - (other * b2)[..., None] * tangent(w, w_star)


def moments(size: Tensor, theta: Tensor, *, slope: Slope) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(kappa0, kappa+, b1, b2) for ||w|| = size and the angle theta, each of their shape.

    Gauss-Legendre on panels that end at every kink of the slope and halve towards 0.
    """
    x, weight = _rule(size)
    psi = slope(size[..., None] * x) * weight * normal_density(x)
    # at theta = 0 and pi the quotient is infinite, which Phi and phi take as their limits
    lean = x * (torch.cos(theta) / torch.sin(theta).clamp(min=1e-300))[..., None]
    return (
        (psi * x).sum(-1),
        (psi * x.clamp(min=0)).sum(-1),
        (psi * x * normal_cdf(lean)).sum(-1),
        (psi * normal_density(lean)).sum(-1),
    )


def _rule(size: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes and weights (..., P * _NODES) on [-_END, _END]."""
    halves = _END * 0.5 ** torch.arange(_HALVINGS, dtype=torch.float64)
    fixed = torch.cat([-halves, halves, torch.zeros(1, dtype=torch.float64)])
    kinks = torch.tensor(_KINKS, dtype=torch.float64) / size[..., None]
    fixed = fixed.expand(*size.shape, -1)
    ends = torch.cat([fixed, kinks.clamp(-_END, _END)], dim=-1).sort(dim=-1).values
    node, weight = _legendre(_NODES)
    left, width = ends[..., :-1, None], ends.diff(dim=-1)[..., None]
    x = left + width * (node + 1) / 2
    return x.flatten(-2), (width * weight / 2).expand_as(x).flatten(-2)


def _legendre(count: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights of Gauss-Legendre on [-1, 1], as eigenvalues of the Jacobi matrix."""
    k = torch.arange(1, count, dtype=torch.float64)
    beta = k / (4 * k.square() - 1).sqrt()
    values, vectors = torch.linalg.eigh(torch.diag(beta, 1) + torch.diag(beta, -1))
    return values, 2 * vectors[0].square()
