"""Experiment c: blended gradient descent on the exact binary set, and without blending.

Random quadratics; the two-linear-layer model with v = v* under its gradient; the same under its
coarse ReLU gradient, which is the gradient of another function F. The inequality of
`blended_descent` is checked in every step; L is 1 for the quadratics and the bound of the Hessian
between w and w' in the model, where no global one exists.

Source: arXiv:1808.05240.
"""

from collections.abc import Mapping
from typing import Any

import torch

from qat.theory import blending_problems as problems
from qat.theory import two_layer as model
from qat.theory.blended_descent import Path, Problem, descend
from qat.theory.experiment import Claim, Result, verdict

PAPER = "arXiv:1808.05240"
PROBLEMS = 300
DIMENSION, DIMENSION_MODEL = 20, 8
STEPS = 600
ETA, ETA_MODEL = 0.1, 0.05  # the first in units of 1 / L
RHOS = (0.0, 1e-5, 1e-3, 0.01, 0.03, 0.1, 0.3, 1.0)
RHOS_MODEL = (0.0, 1e-3, 0.01, 0.1, 0.3)

QUADRATICS, EXACT = "random quadratics", "model, gradient"
POTENTIAL, COARSE = "model, coarse ReLU gradient: F", "model, coarse ReLU gradient: f"

# problem -> rho -> path
Paths = Mapping[str, Mapping[float, Path]]


def run(*, seed: int = 0) -> Result:
    """Descend with every rho, check the inequality and judge the claims."""
    generator = torch.Generator().manual_seed(seed)
    quadratics = problems.quadratics(PROBLEMS, DIMENSION, generator=generator)
    start = torch.randn(PROBLEMS, DIMENSION, generator=generator, dtype=torch.float64)
    near = torch.randn(PROBLEMS, DIMENSION_MODEL, generator=generator, dtype=torch.float64)
    w_star = model.unit(torch.randn(near.shape, generator=generator, dtype=torch.float64))
    near = near / DIMENSION_MODEL**0.5

    def sweep(problem: Problem) -> dict[float, Path]:
        return {r: descend(problem, near, rho=r, eta=ETA_MODEL, steps=STEPS) for r in RHOS_MODEL}

    paths = {
        QUADRATICS: {r: descend(quadratics, start, rho=r, eta=ETA, steps=STEPS) for r in RHOS},
        EXACT: sweep(problems.angle_loss(w_star)),
        POTENTIAL: sweep(problems.relu_potential(w_star)),
        COARSE: sweep(problems.coarse_relu_loss(w_star)),
    }
    return Result(
        name="blending",
        claims=claims(paths),
        columns=(
            "problem", "rho", "share of steps with eta <= rho / L", "share of steps that rise",
            "rises though eta <= rho / L", "steps that break the inequality", "mean at the start",
            "mean at the end", "mean of the least on the way",
        ),
        rows=tuple(_row(name, r, path) for name, by in paths.items() for r, path in by.items()),
        curves=_curves(paths),
    )  # fmt: skip


def claims(paths: Paths) -> tuple[Claim, ...]:
    """All claims of experiment c."""
    return (
        sufficient_descent(
            paths[QUADRATICS],
            f"random quadratics, binary weights ({PAPER})",
            note=f"eta = {ETA:g} / L",
        ),
        sufficient_descent(
            paths[EXACT],
            f"the two-linear-layer model with v = v* ({PAPER})",
            condition=True,
            note="the gradient has no global Lipschitz constant (theta = 0, w = 0), so that the "
            "premise is checked step by step",
        ),
        sufficient_descent(
            paths[POTENTIAL],
            "the coarse ReLU gradient of that model, for F = (||w|| - w^T w*) / (2 sqrt(2 pi)) in "
            "place of f (ours)",
            condition=True,
            note="E g is the gradient of F; L grows as ||w|| shrinks, and ever fewer steps meet "
            "the premise",
        ),
        *_quadratic_claims(paths[QUADRATICS]),
        _coarse_claim(paths[COARSE]),
    )


def sufficient_descent(
    paths: Mapping[float, Path], text: str, *, condition: bool = False, note: str
) -> Claim:
    """The inequality in every step, and descent where the premise holds."""
    steps = sum(path.premise.numel() for path in paths.values())
    safe = sum(int(path.premise.sum()) for path in paths.values())
    broken = sum(path.broken for path in paths.values())
    rises = sum(path.rises_despite_premise for path in paths.values())
    outside = sum(int((path.rises & ~path.premise).sum()) for path in paths.values())
    return Claim(
        text="sufficient descent with blending, f(w') <= f(w) - (rho / eta - L) ||w' - w||^2 / 2, "
        f"no rise if eta <= rho / L: {text}",
        verdict=verdict(safe > 0 and broken == 0 and rises == 0, condition=condition),
        evidence=f"the inequality is broken in {broken} of {steps} steps; {rises} rises in the "
        f"{safe} steps with eta <= rho / L, {outside} in the {steps - safe} others; {note}",
    )


def _quadratic_claims(paths: Mapping[float, Path]) -> tuple[Claim, ...]:
    none, tiny, safe = paths[0.0], paths[1e-5], paths[0.1]
    ends = {rho: float(path.loss[-1].mean()) for rho, path in paths.items()}
    least = {rho: float(path.loss.amin(dim=0).mean()) for rho, path in paths.items()}
    best = min(least, key=lambda rho: least[rho])
    return (
        Claim(
            text="without blending (rho = 0) f rises in a share of the steps (ours; "
            f"{PAPER} proves descent with blending only)",
            verdict=verdict(none.share_of_rises > 0),
            evidence=f"quadratics: {100 * none.share_of_rises:.1f} % of the steps at the same eta; "
            f"f / f(0) at the end {ends[0.0]:.3f}, with rho = 0.1 {ends[0.1]:.3f}",
        ),
        Claim(
            text="the recipe's rho = 1e-5 behaves as rho = 0, its premise does not hold (ours)",
            verdict=verdict(abs(tiny.share_of_rises - none.share_of_rises) < 0.01),
            evidence=f"quadratics: {100 * tiny.share_of_rises:.1f} % and "
            f"{100 * none.share_of_rises:.1f} % of the steps rise; f / f(0) at the end "
            f"{ends[1e-5]:.3f} and {ends[0.0]:.3f}",
        ),
        Claim(
            text="the best point met on the way is better with rho = 0.1, where descent is sure, "
            "than without blending (ours)",
            verdict=verdict(bool(safe.premise.all()) and least[0.1] < least[0.0]),
            evidence=f"quadratics, mean of the least f / f(0): {least[0.1]:.3f} with rho = 0.1, "
            f"{least[0.0]:.3f} without, which meets better points and leaves them; best of all rho "
            f"{least[best]:.3f} at rho = {best:g}, where the premise does not hold",
        ),
    )


def _coarse_claim(paths: Mapping[float, Path]) -> Claim:
    shares = {rho: path.share_of_rises for rho, path in paths.items()}
    ends = {rho: float(path.loss[-1].mean()) for rho, path in paths.items()}
    return Claim(
        text="under the coarse ReLU gradient blending keeps the model's loss f from rising (ours)",
        verdict=verdict(min(shares.values()) == 0),
        evidence="steps that rise: "
        + ", ".join(f"{100 * share:.1f} % at rho = {rho:g}" for rho, share in shares.items())
        + f"; mean f at the end {min(ends.values()):.4f} to {max(ends.values()):.4f}",
    )


def _row(name: str, rho: float, path: Path) -> tuple[Any, ...]:
    judged: tuple[float | None, ...] = (None, path.share_of_rises, None, None)
    if name != COARSE:  # f is not what the coarse gradient descends: no inequality to check
        share = float(path.premise.double().mean())
        judged = (share, path.share_of_rises, path.rises_despite_premise, path.broken)
    means = (path.loss[0], path.loss[-1], path.loss.amin(dim=0))
    return (name, rho, *judged, *(float(loss.mean()) for loss in means))


def _curves(paths: Paths) -> dict[str, Any]:
    loss = {f"{rho:g}": path.loss.mean(dim=1).tolist() for rho, path in paths[QUADRATICS].items()}
    shares = {
        name: {f"{rho:g}": path.share_of_rises for rho, path in paths[name].items()}
        for name in (QUADRATICS, EXACT, COARSE)
    }
    return {"loss": loss, "rises": shares}
