"""Experiment a: descent with ReLU and clipped ReLU, instability of the identity.

Expected coarse gradient descent from starts all over the space, with and without spurious minima,
and from starts beside a spurious minimum with ever smaller steps.

Source: arXiv:1903.05662 (theorem 1, proposition 1, lemmas 5 to 8); the clipped ReLU as in its final
version, read here as the same claims.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from qat.theory import landscape as land
from qat.theory import two_layer as model
from qat.theory.convergence_claims import ANYWHERE, BESIDE, EASY, FAR, Findings, claims
from qat.theory.descent import (
    COARSE,
    W_STAR,
    Coarse,
    Path,
    Starts,
    descend,
    end_points,
    join,
    safe_step_factor,
)
from qat.theory.experiment import Result

V_STAR = (1.0, -0.5, 0.2)  # spurious minima exist
V_STAR_EASY = (1.0, 1.0, 1.0)  # none does: s^2 = 9 >= (m + 1) / 2 ||v*||^2 = 6
ETA = 0.05
ETAS_BESIDE = (0.05, 0.02, 0.005)
STEPS = 10_000
RUNS = 100

_COLUMNS = (
    "estimator", "starts", "number", "to the global minimum", "to the spurious minimum",
    "to a saddle", "elsewhere", "largest one-step rise of f", "largest ||w|| from which f rose",
    "smallest ||w||",
)  # fmt: skip


def run(*, seed: int = 0) -> Result:
    """Descend with the three estimators and judge the claims."""
    starts, parts = join(_starts(seed))
    v_star = torch.tensor(V_STAR, dtype=torch.float64)
    paths: dict[str, dict[str, Path]] = {}
    for name, coarse in COARSE.items():
        path = descend(coarse, starts, steps=STEPS)
        paths[name] = {place: path[runs] for place, runs in parts.items()}
    rows = tuple(
        (name, place, path.loss.shape[1], *end_points(path).values(), path.largest_rise,
         path.norm_of_rise, float(path.norm.min()))
        for name, places in paths.items()
        for place, path in places.items()
    )  # fmt: skip
    findings = Findings(
        paths=paths,
        norms={name: stationarity(coarse) for name, coarse in COARSE.items()},
        predicted_norm=spurious_norm(),
        step_factors={
            name: safe_step_factor(coarse, v_star, seed=seed) for name, coarse in COARSE.items()
        },
        ratios=ratio_curves(),
        etas_beside=ETAS_BESIDE,
    )
    return Result(
        name="convergence",
        claims=claims(findings),
        columns=_COLUMNS,
        rows=rows,
        curves=_curves(findings),
    )


def stationarity(coarse: Coarse) -> dict[str, float]:
    """Norm of (df/dv, E g) at the global minimum, the spurious one, a saddle."""
    v_star = torch.tensor(V_STAR, dtype=torch.float64)
    points = {
        "global": (v_star, W_STAR),
        "spurious": (land.spurious_v(v_star), -W_STAR),
        "saddle": saddle(v_star),
    }
    found = {}
    for kind, (v, w) in points.items():
        step_v = model.gradient_v(v, w, v_star, W_STAR)
        found[kind] = float(torch.cat([step_v, coarse(v, w, v_star, W_STAR)]).norm())
    return found


def saddle(v_star: Tensor) -> tuple[Tensor, Tensor]:
    """A saddle (v, w) for v* (m,), with ||w|| = 1."""
    theta = land.saddle_angle(v_star)
    return land.best_v(1 - 2 * theta / math.pi, v_star), land.direction(W_STAR, theta)


def spurious_norm() -> float:
    """Norm of the identity's E g at the spurious minimum.

    2 (m - 1) s^2 / (sqrt(2 pi) (m + 1)^2)
    """
    m, s = len(V_STAR), sum(V_STAR)
    return 2 * (m - 1) * s**2 / (model.ROOT * (m + 1) ** 2)


def ratio(coarse: Coarse, v: Tensor, w: Tensor, v_star: Tensor, w_star: Tensor) -> Tensor:
    """||E g||^2 / (||df/dv||^2 + <E g, df/dw>), (...,); a bound of it makes small steps descend."""
    g = coarse(v, w, v_star, w_star)
    inner = (g * model.gradient_w(v, w, v_star, w_star)).sum(-1)
    slope = model.gradient_v(v, w, v_star, w_star).square().sum(-1)
    quotient: Tensor = g.square().sum(-1) / (slope + inner)
    return quotient


def ratio_curves() -> dict[str, list[float]]:
    """The ratio for pi - theta = `gap` from 1e-6 to 1, with the best v at each angle."""
    gap = torch.logspace(-6, 0, 61, dtype=torch.float64)
    theta, v_star = math.pi - gap, torch.tensor(V_STAR, dtype=torch.float64)
    w = land.direction(W_STAR.expand(len(gap), -1), theta)
    v = land.best_v(1 - 2 * theta / math.pi, v_star)
    curves = {name: ratio(coarse, v, w, v_star, W_STAR).tolist() for name, coarse in COARSE.items()}
    return {"gap": gap.tolist(), **curves}


def _starts(seed: int) -> dict[str, Starts]:
    generator = torch.Generator().manual_seed(seed)
    v_star, easy = (torch.tensor(v, dtype=torch.float64) for v in (V_STAR, V_STAR_EASY))
    v = torch.randn(RUNS, len(V_STAR), generator=generator, dtype=torch.float64)
    w = torch.randn(RUNS, 2, generator=generator, dtype=torch.float64)
    v_beside, w_beside = land.spurious_v(v_star) + 1e-3, [-1.0, 0.01]
    v_far, w_far = [0.5, 0.1, 0.0], [0.2, 1.0]
    return {
        ANYWHERE: _from(v, w, v_star, (ETA,)),
        EASY: _from(v, w, easy, (ETA,)),
        BESIDE: _from(v_beside[None], v.new_tensor([w_beside]), v_star, ETAS_BESIDE),
        FAR: _from(v.new_tensor([v_far]), v.new_tensor([w_far]), v_star, (ETA,)),
    }


def _from(v: Tensor, w: Tensor, v_star: Tensor, etas: tuple[float, ...]) -> Starts:
    """Every start with every step."""
    eta = torch.tensor(etas, dtype=torch.float64).repeat_interleave(len(v))[:, None]
    v, w = v.repeat(len(etas), 1), w.repeat(len(etas), 1)
    return Starts(v=v, w=w, v_star=v_star.expand_as(v), eta=eta)


def _curves(findings: Findings) -> Mapping[str, Any]:
    v_star = torch.tensor(V_STAR, dtype=torch.float64)
    paths = {name: places[BESIDE] for name, places in findings.paths.items()}
    return {
        "loss": {name: path.loss[:, 0].tolist() for name, path in paths.items()},
        "norm": {name: path.norm[:, 0].tolist() for name, path in paths.items()},
        "eta": ETAS_BESIDE[0],
        "spurious_loss": float(land.spurious_loss(v_star)),
        "ratio": findings.ratios,
    }
