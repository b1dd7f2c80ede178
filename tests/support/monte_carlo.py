"""Monte Carlo twin of the two-linear-layer model's closed forms, with its own errors.

One point of the parameters at a time: v, v* (m,), w, w* (n,), float64. Letters as in
`qat.theory.two_layer`; everything follows the definitions and shares nothing with the closed forms.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# 100 000 draws of Z (4, 4) take 13 MB
_CHUNK = 100_000


@dataclass(frozen=True, slots=True)
class Estimate:
    """A sample mean and its standard error, of the shape of what is estimated."""

    mean: Tensor
    error: Tensor


def sample_loss(
    v: Tensor, w: Tensor, v_star: Tensor, w_star: Tensor, *, samples: int, seed: int = 0
) -> Estimate:
    """Mean loss (y - y*)^2 / 2, ()."""

    def draw(z: Tensor) -> Tensor:
        return _residual(z, v, w, v_star, w_star).square() / 2

    return _mean(draw, (len(v), len(w)), samples, seed)


def sample_gradient_v(
    v: Tensor, w: Tensor, v_star: Tensor, w_star: Tensor, *, samples: int, seed: int = 0
) -> Estimate:
    """Mean of sigma(Z w) (y - y*), (m,)."""

    def draw(z: Tensor) -> Tensor:
        return _step(z @ w) * _residual(z, v, w, v_star, w_star)[:, None]

    return _mean(draw, (len(v), len(w)), samples, seed)


def sample_coarse(
    v: Tensor,
    w: Tensor,
    v_star: Tensor,
    w_star: Tensor,
    *,
    slope: Callable[[Tensor], Tensor],
    samples: int,
    seed: int = 0,
) -> Estimate:
    """Mean coarse gradient Z^T (mu'(Z w) * v) (y - y*), (n,).

    Args:
        v: (m,) float64.
        w: (n,) float64.
        v_star: (m,).
        w_star: (n,), a unit vector.
        slope: mu', elementwise.
        samples: number of draws of Z, at least 2.
        seed: of the draws.
    """

    def draw(z: Tensor) -> Tensor:
        passed = slope(z @ w) * v * _residual(z, v, w, v_star, w_star)[:, None]
        return (passed[:, None] @ z)[:, 0]

    return _mean(draw, (len(v), len(w)), samples, seed)


def _residual(z: Tensor, v: Tensor, w: Tensor, v_star: Tensor, w_star: Tensor) -> Tensor:
    return _step(z @ w) @ v - _step(z @ w_star) @ v_star


def _step(x: Tensor) -> Tensor:
    return (x > 0).to(x.dtype)


def _mean(
    draw: Callable[[Tensor], Tensor], shape: tuple[int, int], samples: int, seed: int
) -> Estimate:
    """Mean and standard error of `draw` over Z, in chunks that fit into memory."""
    generator = torch.Generator().manual_seed(seed)
    total = squares = torch.zeros((), dtype=torch.float64)
    for done in range(0, samples, _CHUNK):
        count = min(_CHUNK, samples - done)
        drawn = draw(torch.randn(count, *shape, generator=generator, dtype=torch.float64))
        total, squares = total + drawn.sum(0), squares + drawn.square().sum(0)
    mean = total / samples
    variance = (squares - samples * mean.square()).clamp(min=0) / (samples - 1)
    return Estimate(mean, (variance / samples).sqrt())
