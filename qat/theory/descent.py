"""Expected coarse gradient descent in the two-linear-layer model, from many starts at once.

    v <- v - eta grad_v f(v, w),   w <- w - eta E g(v, w)

w stays in the plane of its start and w*, so n = 2 with w* = (1, 0) shows everything.

Source: arXiv:1903.05662.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from qat.theory import landscape as land
from qat.theory import two_layer as model

Coarse = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]

COARSE: Mapping[str, Coarse] = {
    "identity": model.coarse_identity,
    "relu": model.coarse_relu,
    "clipped_relu": model.coarse_clipped_relu,
}
W_STAR = torch.tensor([1.0, 0.0], dtype=torch.float64)
# C of eta = C ||w||^2, tried from the largest on
STEP_FACTORS = (4.0, 2.0, 1.0, 0.5, 0.25, 0.125, 0.0625)
_STATES = 50_000
# larger than what rounding adds to the closed forms, in units of f
RISE = 1e-12
# how close to a point a run must end to have found it: in f, and in radians
_NEAR, _NEAR_ANGLE = 1e-3, 0.03


@dataclass(frozen=True, slots=True, kw_only=True)
class Starts:
    """Where S runs start: v, v_star (S, m), w (S, 2), and the step eta (S, 1) of each."""

    v: Tensor
    w: Tensor
    v_star: Tensor
    eta: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Path:
    """What S runs went through.

    Attributes:
        loss: f before the first and after each step, (T + 1, S).
        norm: ||w|| at the same times, (T + 1, S).
        theta: angle at the end, (S,).
        v_star: (S, m).
    """

    loss: Tensor
    norm: Tensor
    theta: Tensor
    v_star: Tensor

    def __getitem__(self, runs: slice) -> "Path":
        """The same, of some of the runs."""
        return Path(
            loss=self.loss[:, runs],
            norm=self.norm[:, runs],
            theta=self.theta[runs],
            v_star=self.v_star[runs],
        )

    @property
    def largest_rise(self) -> float:
        """Largest f(t + 1) - f(t) of all runs; negative if f only fell."""
        return float(self.loss.diff(dim=0).max())

    @property
    def rises(self) -> Tensor:
        """Which steps raise f, bool (T, S)."""
        return self.loss.diff(dim=0) > RISE

    @property
    def norm_of_rise(self) -> float:
        """Largest ||w|| from which a step raised f; 0 if none did."""
        return float((self.norm[:-1] * self.rises).max())


def join(parts: Mapping[str, Starts]) -> tuple[Starts, dict[str, slice]]:
    """All starts as one batch, and where each part lies in it."""
    found, begin = {}, 0
    for name, part in parts.items():
        found[name] = slice(begin, begin + len(part.v))
        begin += len(part.v)
    fields = ("v", "w", "v_star", "eta")
    whole = {key: torch.cat([getattr(part, key) for part in parts.values()]) for key in fields}
    return Starts(**whole), found


def descend(coarse: Coarse, starts: Starts, *, steps: int) -> Path:
    """Run the dynamics with one estimator."""
    v, w, v_star, eta = starts.v, starts.w, starts.v_star, starts.eta
    losses, norms = [model.loss(v, w, v_star, W_STAR)], [w.norm(dim=-1)]
    for _ in range(steps):
        step_v, step_w = model.gradient_v(v, w, v_star, W_STAR), coarse(v, w, v_star, W_STAR)
        v, w = v - eta * step_v, w - eta * step_w
        losses.append(model.loss(v, w, v_star, W_STAR))
        norms.append(w.norm(dim=-1))
    return Path(
        loss=torch.stack(losses),
        norm=torch.stack(norms),
        theta=model.angle(w, W_STAR),
        v_star=v_star,
    )


def safe_step_factor(coarse: Coarse, v_star: Tensor, *, seed: int) -> float:
    """Largest C of `STEP_FACTORS` such that no step with eta <= C ||w||^2 raises f; 0 if none.

    Single steps from random states with ||v|| <= 3 and 0.001 <= ||w|| <= 1. The Lipschitz constant
    of the gradient grows as 1 / ||w||^2, so that a bound ||w|| >= c_w asks for such an eta.
    """
    generator = torch.Generator().manual_seed(seed)
    v = torch.randn(_STATES, len(v_star), generator=generator, dtype=torch.float64)
    v = v * (3 / v.norm(dim=-1, keepdim=True)).clamp(max=1)
    w = model.unit(torch.randn(_STATES, 2, generator=generator, dtype=torch.float64))
    w = w * 10 ** (-3 * torch.rand(_STATES, 1, generator=generator, dtype=torch.float64))
    safe = 0.0
    for factor in reversed(STEP_FACTORS):
        eta = factor * w.square().sum(-1, keepdim=True)
        one = descend(coarse, Starts(v=v, w=w, v_star=v_star.expand_as(v), eta=eta), steps=1)
        if one.rises.any():
            break
        safe = factor
    return safe


def end_points(path: Path) -> dict[str, int]:
    """Number of runs that came to rest at each kind of point, and of those that did not.

    At rest: f moved by less than 0.001 over the last tenth of the steps. The kinds exclude each
    other: they differ in theta.
    """
    late = path.loss[-len(path.loss) // 10 :]
    rests = late.amax(dim=0) - late.amin(dim=0) < _NEAR
    end, saddle = path.loss[-1], land.saddle_angle(path.v_star)
    at_saddle = land.reduced_loss(1 - 2 * saddle / math.pi, path.v_star)
    wanted = {
        "global": (torch.zeros_like(end), torch.zeros_like(end)),
        "spurious": (land.spurious_loss(path.v_star), torch.full_like(end, math.pi)),
        "saddle": (at_saddle, saddle),
    }
    counts = {}
    for kind, (value, theta) in wanted.items():
        near = ((end - value).abs() < _NEAR) & ((path.theta - theta).abs() < _NEAR_ANGLE)
        counts[kind] = int((near & rests).sum())
    return counts | {"elsewhere": len(end) - sum(counts.values())}
