"""Blended gradient descent on the exact binary set, for any gradient.

    w_f <- (1 - rho) w_f + rho w - eta g(w),   w = proj(w_f) = mean|w_f| sign(w_f)

w_f and w are nearest to each other before and after the step, whatever g is; hence

    <w' - w, g> <= -(rho / eta) ||w' - w||^2 / 2

and if g is the gradient of a function f, L-smooth from w to w',

    f(w') <= f(w) - (rho / eta - L) ||w' - w||^2 / 2,

which is descent where eta <= rho / L.

Source: arXiv:1808.05240.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# larger than what rounding adds, in units of f(0), which is about 1
RISE = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """P functions of w (P, n), each with a gradient and a bound of its curvature.

    Attributes:
        value: w -> f (P,).
        gradient: w -> g (P, n).
        smoothness: w, w' -> Lipschitz constant L of the gradient on the way from w to w', (P,).
    """

    value: Callable[[Tensor], Tensor]
    gradient: Callable[[Tensor], Tensor]
    smoothness: Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Path:
    """What the iteration went through.

    Attributes:
        loss: f before the first and after each step, (T + 1, P).
        slack: f(w') - f(w) + (rho / eta - L) ||w' - w||^2 / 2, (T, P); positive if the inequality
            is broken.
        premise: eta <= rho / L, bool (T, P).
    """

    loss: Tensor
    slack: Tensor
    premise: Tensor

    @property
    def rises(self) -> Tensor:
        """Which steps raise f, bool (T, P)."""
        return self.loss.diff(dim=0) > RISE

    @property
    def broken(self) -> int:
        """Number of steps that break the inequality."""
        return int((self.slack > RISE).sum())

    @property
    def rises_despite_premise(self) -> int:
        """Number of steps that raise f though eta <= rho / L."""
        return int((self.rises & self.premise).sum())

    @property
    def share_of_rises(self) -> float:
        """Share of the steps that raise f."""
        return float(self.rises.double().mean())


def project(w: Tensor) -> Tensor:
    """Nearest point to w (..., n) of {s q: s >= 0, q in {-1, 1}^n}; code 1 at 0."""
    return w.abs().mean(dim=-1, keepdim=True) * torch.where(w < 0, -1.0, 1.0)


def descend(problem: Problem, start: Tensor, *, rho: float, eta: float, steps: int) -> Path:
    """Run the iteration from w_f = start (P, n)."""
    latent, w = start, project(start)
    losses, slacks, premises = [problem.value(w)], [], []
    for _ in range(steps):
        latent = (1 - rho) * latent + rho * w - eta * problem.gradient(w)
        new = project(latent)
        smoothness = problem.smoothness(w, new)
        losses.append(problem.value(new))
        moved = (new - w).square().sum(-1)
        slacks.append(losses[-1] - losses[-2] + (rho / eta - smoothness) * moved / 2)
        premises.append(eta * smoothness <= rho)
        w = new
    return Path(loss=torch.stack(losses), slack=torch.stack(slacks), premise=torch.stack(premises))
