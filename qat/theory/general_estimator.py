"""Expected coarse gradient of any estimator in the two-linear-layer model, by quadrature.

For a slope psi that may be nonzero on both sides of 0,

    E g = [ ((1^T v)^2 - ||v||^2 - s 1^T v + v^T v*) kappa / 2 + ||v||^2 kappa+ ] w_hat
          - (v^T v*) (b1 w_hat + b2 u)

    kappa = E[x psi(||w|| x)]                     kappa+ = E[x psi(||w|| x) 1{x > 0}]
    b1    = E[x psi(||w|| x) Phi(x cot theta)]    b2     = E[psi(||w|| x) phi(x cot theta)]

over x ~ N(0, 1). Hidden units i and j != i see independent rows of Z, which leaves kappa / 2; unit
i with itself gives kappa+ and, with its label, E[z psi(z^T w) 1{z^T w* > 0}] = b1 w_hat + b2 u.
Where psi = 0 for x < 0, kappa = kappa+ and the bracket is h kappa / 2. As u is orthogonal to w_hat,

    <E g, df/dw> = (v^T v*)^2 b2 / (2 pi ||w||):   the sign is that of b2.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from qat.functional.stairs import relu_stairs
from qat.functional.ste import Sharpness, coarse_slope
from qat.names import Derivative
from qat.theory.two_layer import angle, normal_cdf, normal_density, tangent, unit

Slope = Callable[[Tensor], Tensor]

# where members of the family jump or bend around 1{x > 0}: ends of range and cell, ReSTE's m and t
KINKS = (-1.0, -0.75, -0.5, -0.05, 0.0, 0.05, 0.5, 0.75, 1.0)
# beyond, the normal density is below 1e-31
_END = 12.0
# panels halve towards 0, where Phi(x cot theta) turns within a width of tan(theta)
_HALVINGS = 45
_NODES = 24


class Moments(NamedTuple):
    """The four numbers of the formula above, each (...,)."""

    kappa: Tensor
    kappa_positive: Tensor
    b1: Tensor
    b2: Tensor


def family_slope(name: Derivative, *, sharpness: Sharpness | None = None) -> Slope:
    """Slope of a member of the family around the activation 1{x > 0}."""
    stairs = relu_stairs(1)
    return lambda x: coarse_slope(x, name, stairs=stairs, sharpness=sharpness)


def coarse_general(
    v: Tensor,
    w: Tensor,
    v_star: Tensor,
    w_star: Tensor,
    *,
    slope: Slope,
    kinks: Sequence[float] = KINKS,
) -> Tensor:
    """Expected coarse gradient (..., n) of the estimator with derivative `slope`.

    Args:
        v: (..., m) float64.
        w: (..., n) float64.
        v_star: (..., m).
        w_star: (..., n), unit vectors.
        slope: psi, elementwise.
        kinks: where psi jumps or bends; exact to about 1e-12 if all are named.
    """
    found = moments(w.norm(dim=-1), angle(w, w_star), slope=slope, kinks=kinks)
    total, own, other = v.sum(-1), v.square().sum(-1), (v * v_star).sum(-1)
    between = total.square() - own - v_star.sum(-1) * total + other
    along = between * found.kappa / 2 + own * found.kappa_positive - other * found.b1
    across = -other * found.b2
    return along[..., None] * unit(w) + across[..., None] * tangent(w, w_star)


def moments(
    size: Tensor, theta: Tensor, *, slope: Slope, kinks: Sequence[float] = KINKS
) -> Moments:
    """Moments for ||w|| = size and the angle theta, both (...,).

    Gauss-Legendre on panels that end at every kink of the slope and halve towards 0.
    """
    x, weight = _rule(size, kinks)
    psi = slope(size[..., None] * x) * weight * normal_density(x)
    # at theta = 0 and pi the quotient is huge, which Phi and phi take to their limits
    lean = x * (torch.cos(theta) / torch.sin(theta).clamp(min=1e-300))[..., None]
    return Moments(
        kappa=(psi * x).sum(-1),
        kappa_positive=(psi * x.clamp(min=0)).sum(-1),
        b1=(psi * x * normal_cdf(lean)).sum(-1),
        b2=(psi * normal_density(lean)).sum(-1),
    )


def _rule(size: Tensor, kinks: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Nodes and weights (..., panels * _NODES) on [-_END, _END]."""
    halves = _END * 0.5 ** torch.arange(_HALVINGS, dtype=torch.float64)
    fixed = torch.cat([-halves, halves, halves.new_zeros(1)]).expand(*size.shape, -1)
    bends = torch.tensor(kinks, dtype=torch.float64) / size[..., None].clamp(min=1e-300)
    ends = torch.cat([fixed, bends.clamp(-_END, _END)], dim=-1).sort(dim=-1).values
    node, weight = _legendre(_NODES)
    left, width = ends[..., :-1, None], ends.diff(dim=-1)[..., None]
    x = left + width * (node + 1) / 2
    return x.flatten(-2), (width * weight / 2).flatten(-2)


def _legendre(count: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights of Gauss-Legendre on [-1, 1], as eigenvalues of the Jacobi matrix."""
    k = torch.arange(1, count, dtype=torch.float64)
    beta = k / (4 * k.square() - 1).sqrt()
    values, vectors = torch.linalg.eigh(torch.diag(beta, 1) + torch.diag(beta, -1))
    return values, 2 * vectors[0].square()
