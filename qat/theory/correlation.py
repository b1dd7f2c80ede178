"""Experiment b: does the coarse gradient point along the gradient? Every estimator, every angle.

For each member of the family, in the two-linear-layer model: the cosine and the inner product of
the expected coarse gradient in w with the gradient, over the angle theta; and whether the minima
are stationary for it.

Source: arXiv:1903.05662, arXiv:1808.05240; the monotone class, arXiv:2011.11256.
"""

import math

import torch
from torch import Tensor

from qat.functional.ste import DERIVATIVES, ESTIMATORS
from qat.theory import landscape as land
from qat.theory import two_layer as model
from qat.theory.experiment import Claim, Result, verdict
from qat.theory.general_estimator import Slope, coarse_general, family_slope

PAPERS = ("identity", "relu", "clipped_relu")
MONOTONE = ("relu", "clipped_relu", "log_tailed_relu", "reverse_exponential")
# that quadrature cannot tell from 0
ZERO = 1e-10
_ANGLES = 181
_DRAWS = 1000
_SIZES = (0.5, 1.0, 2.0)


def run(*, seed: int = 0) -> Result:
    """Correlate all estimators and judge the claims."""
    theta = torch.linspace(0, math.pi, _ANGLES, dtype=torch.float64)[1:-1]
    members = family()
    cosines: dict[str, list[float]] = {}
    rows: list[tuple[str, float, float, float, float, float]] = []
    lowest: dict[str, float] = {}
    at_spurious: dict[str, float] = {}
    for name, slope in members.items():
        cosine = {size: _cosine(slope, theta, size) for size in _SIZES}
        cosines[name] = cosine[1.0].tolist()
        lowest[name] = float(_inner_products(slope, seed).min())
        at_spurious[name] = _norm_at_spurious(slope)
        worst = min(float(c.min()) for c in cosine.values())
        rows.append(
            (
                name,
                float(cosine[1.0].mean()),
                worst,
                lowest[name],
                _norm_at_global(slope),
                at_spurious[name],
            )
        )
    return Result(
        name="correlation",
        claims=_claims(lowest, at_spurious, {row[0]: row[4] for row in rows}),
        columns=(
            "estimator", "mean cosine over theta (||w|| = 1)", "least cosine (||w|| 0.5, 1, 2)",
            f"least <E g, df/dw> of {_DRAWS} draws", "||E g|| at the global minimum",
            "||E g|| at the spurious minimum",
        ),
        rows=tuple(rows),
        curves={"theta": theta.tolist(), "cosine": cosines},
    )  # fmt: skip


def family() -> dict[str, Slope]:
    """Name -> slope around 1{x > 0}; scheduled members at both ends of their schedule."""
    found: dict[str, Slope] = {}
    for name in DERIVATIVES:
        member = ESTIMATORS[name]
        if member.is_scheduled:
            for place, progress in (("start", 0.0), ("end", 1.0)):
                sharpness = member.sharpness(progress)
                found[f"{name} ({place})"] = family_slope(name, sharpness=sharpness)
        else:
            found[name] = family_slope(name)
    return found


def _cosine(slope: Slope, theta: Tensor, size: float) -> Tensor:
    """Cosine of E g and df/dw over the angle, with v = v* (one hidden unit is as good as many)."""
    w_star = torch.tensor([1.0, 0.0], dtype=torch.float64).expand(len(theta), -1)
    w = size * land.direction(w_star, theta)
    v = torch.ones(len(theta), 1, dtype=torch.float64)
    g = coarse_general(v, w, v, w_star, slope=slope)
    true = model.gradient_w(v, w, v, w_star)
    cosine: Tensor = (g * true).sum(-1) / (g.norm(dim=-1) * true.norm(dim=-1))
    return cosine


def _inner_products(slope: Slope, seed: int) -> Tensor:
    """<E g, df/dw> over random v, w, v*, w* (m = 3, n = 4)."""
    generator = torch.Generator().manual_seed(seed)
    v, v_star, w, w_star = (
        torch.randn(_DRAWS, k, generator=generator, dtype=torch.float64) for k in (3, 3, 4, 4)
    )
    w_star = model.unit(w_star)
    g = coarse_general(v, w, v_star, w_star, slope=slope)
    inner: Tensor = (g * model.gradient_w(v, w, v_star, w_star)).sum(-1)
    return inner


_V_STAR = torch.tensor([1.0, -0.5, 0.2], dtype=torch.float64)
_W_STAR = torch.tensor([1.0, 0.0], dtype=torch.float64)


def _norm_at_global(slope: Slope) -> float:
    return float(coarse_general(_V_STAR, _W_STAR, _V_STAR, _W_STAR, slope=slope).norm())


def _norm_at_spurious(slope: Slope) -> float:
    v = land.spurious_v(_V_STAR)
    return float(coarse_general(v, -_W_STAR, _V_STAR, _W_STAR, slope=slope).norm())


def _claims(
    lowest: dict[str, float], at_spurious: dict[str, float], at_global: dict[str, float]
) -> tuple[Claim, ...]:
    negative = {name: value for name, value in lowest.items() if value < -ZERO}
    still = [name for name, norm in at_spurious.items() if norm < ZERO]
    moved = {name: norm for name, norm in at_spurious.items() if norm >= ZERO}
    return (
        _sign_claim(PAPERS, "arXiv:1903.05662, lemmas 5 and 8; arXiv:1808.05240", lowest),
        _sign_claim(MONOTONE, "the class of arXiv:2011.11256, in this model", lowest),
        Claim(
            text="every member of the family has <E g, df/dw> >= 0 in this model (ours)",
            verdict=verdict(
                not negative or set(negative) == {"swish_sign"}, condition=bool(negative)
            ),
            evidence="the sign is that of E[psi(||w|| x) phi(x cot theta)], so a slope that is "
            "nowhere "
            "negative suffices; negative: "
            + (", ".join(f"{n} (least {x:.2g})" for n, x in negative.items()) or "none"),
        ),
        Claim(
            text="the global minimum is stationary for every estimator (ours)",
            verdict=verdict(max(at_global.values()) < ZERO),
            evidence=f"largest ||E g|| there {max(at_global.values()):.1e}",
        ),
        Claim(
            text="the spurious minimum is stationary for the estimators with mu' = 0 on x < 0, and "
            "only for them (arXiv:1903.05662, lemmas 6 and 7 for three of them)",
            verdict=verdict(set(still) == set(MONOTONE)),
            evidence=f"stationary: {', '.join(still)}; ||E g|| of the others "
            f"{min(moved.values()):.2g} to {max(moved.values()):.2g}",
        ),
    )


def _sign_claim(names: tuple[str, ...], source: str, lowest: dict[str, float]) -> Claim:
    least = {name: lowest[name] for name in names}
    return Claim(
        text=f"<E g, df/dw> >= 0 for {', '.join(names)} ({source})",
        verdict=verdict(min(least.values()) >= -ZERO),
        evidence=f"least of {_DRAWS} random draws: "
        + ", ".join(f"{name} {value:.1e}" for name, value in least.items()),
    )
