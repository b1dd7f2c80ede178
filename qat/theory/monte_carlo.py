"""The two-linear-layer model by sampling: the twin of the closed forms, with its own errors."""

from dataclasses import dataclass

import torch
from torch import Tensor

from qat.theory.general_estimator import Slope

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

    def value(z: Tensor) -> Tensor:
        return _residual(z, v, w, v_star, w_star).square() / 2

    return _mean(value, (len(v), len(w)), samples, seed)


def sample_gradient_v(
    v: Tensor, w: Tensor, v_star: Tensor, w_star: Tensor, *, samples: int, seed: int = 0
) -> Estimate:
    """Mean of sigma(Z w) (y - y*), (m,)."""

    def value(z: Tensor) -> Tensor:
        return _step(z @ w) * _residual(z, v, w, v_star, w_star)[:, None]

    return _mean(value, (len(v), len(w)), samples, seed)


def sample_coarse(
    v: Tensor,
    w: Tensor,
    v_star: Tensor,
    w_star: Tensor,
    *,
    slope: Slope,
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
        samples: number of draws of Z.
        seed: of the draws.
    """

    def value(z: Tensor) -> Tensor:
        passed = slope(z @ w) * v * _residual(z, v, w, v_star, w_star)[:, None]
        return torch.einsum("bmn,bm->bn", z, passed)

    return _mean(value, (len(v), len(w)), samples, seed)


def _residual(z: Tensor, v: Tensor, w: Tensor, v_star: Tensor, w_star: Tensor) -> Tensor:
    return _step(z @ w) @ v - _step(z @ w_star) @ v_star


def _step(x: Tensor) -> Tensor:
    return (x > 0).to(x.dtype)


def _mean(value: Slope, shape: tuple[int, int], samples: int, seed: int) -> Estimate:
    """Mean and standard error of `value` over draws of Z, in chunks that fit into memory."""
    generator = torch.Generator().manual_seed(seed)
    total = squares = torch.zeros((), dtype=torch.float64)
    done = 0
    while done < samples:
        count = min(_CHUNK, samples - done)
        z = torch.randn(count, *shape, generator=generator, dtype=torch.float64)
        drawn = value(z)
        total, squares = total + drawn.sum(0), squares + drawn.square().sum(0)
        done += count
    mean = total / samples
    variance = (squares / samples - mean.square()).clamp(min=0)
    return Estimate(mean, (variance / samples).sqrt())
