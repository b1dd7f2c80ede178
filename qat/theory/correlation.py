"""Experiment b: does the coarse gradient point along the gradient? Every estimator, every angle.

For each member of the family, in the two-linear-layer model: the cosine and the inner product of
the expected coarse gradient in w with the gradient over the angle theta, and whether the minima are
stationary for it.

Source: arXiv:1903.05662, arXiv:1808.05240; the monotone class, arXiv:2011.11256.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qat.functional.ste import DERIVATIVES, ESTIMATORS
from qat.theory import landscape as land
from qat.theory import two_layer as model
from qat.theory.experiment import Claim, Result, verdict
from qat.theory.general_estimator import Slope, coarse_general, family_slope, moments

PAPERS = ("identity", "relu", "clipped_relu")
MONOTONE = ("relu", "clipped_relu", "log_tailed_relu", "reverse_exponential")
SIZES = (0.5, 1.0, 2.0)  # of w
# what quadrature cannot tell from 0
ZERO = 1e-10
_ANGLES = 181
_DRAWS = 1000
_V_STAR = torch.tensor([1.0, -0.5, 0.2], dtype=torch.float64)
_W_STAR = torch.tensor([1.0, 0.0], dtype=torch.float64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Numbers of one estimator.

    Attributes:
        cosine: ||w|| -> cosine of E g and df/dw over the angles.
        inner: <E g, df/dw> over the angles at ||w|| = 1, ||v|| = 1.
        least: smallest <E g, df/dw> over random v, w, v*, w*.
        at_global: ||E g|| at the global minimum.
        at_spurious: ||E g|| at a spurious minimum with ||w|| = 1.
        predicted: 2 (m - 1) s^2 / (m + 1)^2 |E[x mu'(x) 1{x < 0}]|, what it should be there.
    """

    cosine: Mapping[float, Tensor]
    inner: Tensor
    least: float
    at_global: float
    at_spurious: float
    predicted: float


def run(*, seed: int = 0) -> Result:
    """Correlate all estimators and judge the claims."""
    theta = torch.linspace(0, math.pi, _ANGLES, dtype=torch.float64)[1:-1]
    found = {name: examine(slope, theta, seed=seed) for name, slope in family().items()}
    rows = tuple(
        (name, float(one.cosine[1.0].mean()), min(float(c.min()) for c in one.cosine.values()),
         one.least, one.at_global, one.at_spurious)
        for name, one in found.items()
    )  # fmt: skip
    curves: dict[str, Any] = {
        "theta": theta.tolist(),
        "cosine": {name: one.cosine[1.0].tolist() for name, one in found.items()},
        "inner": {name: one.inner.tolist() for name, one in found.items()},
    }
    return Result(
        name="correlation",
        claims=claims(found),
        columns=(
            "estimator", "mean cosine over theta (||w|| = 1)", "least cosine (||w|| = 0.5, 1, 2)",
            f"least <E g, df/dw> of {_DRAWS} draws", "||E g|| at the global minimum",
            "||E g|| at the spurious minimum",
        ),
        rows=rows,
        curves=curves,
    )  # fmt: skip


def family() -> dict[str, Slope]:
    """Name -> slope around 1{x > 0}; scheduled members at both ends of their schedule."""
    found: dict[str, Slope] = {}
    for name in DERIVATIVES:
        member = ESTIMATORS[name]
        places = (" (start)", " (end)") if member.is_scheduled else ("",)
        for progress, place in enumerate(places):
            found[name + place] = family_slope(name, sharpness=member.sharpness(float(progress)))
    return found


def examine(slope: Slope, theta: Tensor, *, seed: int) -> Finding:
    """All numbers of one estimator."""
    spurious = land.spurious_v(_V_STAR)
    below = moments(torch.ones(()).double(), torch.zeros(()).double(), slope=slope)
    m, s = len(_V_STAR), float(_V_STAR.sum())
    leak = abs(float(below.kappa - below.kappa_positive))
    return Finding(
        cosine={size: _products(slope, theta, size)[0] for size in SIZES},
        inner=_products(slope, theta, 1.0)[1],
        least=float(_random_products(slope, seed).min()),
        at_global=float(coarse_general(_V_STAR, _W_STAR, _V_STAR, _W_STAR, slope=slope).norm()),
        at_spurious=float(coarse_general(spurious, -_W_STAR, _V_STAR, _W_STAR, slope=slope).norm()),
        predicted=2 * (m - 1) * s**2 / (m + 1) ** 2 * leak,
    )


def _products(slope: Slope, theta: Tensor, size: float) -> tuple[Tensor, Tensor]:
    """Cosine and inner product of E g and df/dw over the angle, with v = v*.

    Different hidden units do not mix when v = v*, so that one shows the cosine of any number.
    """
    w_star = _W_STAR.expand(len(theta), -1)
    w = size * land.direction(w_star, theta)
    v = torch.ones(len(theta), 1, dtype=torch.float64)
    g = coarse_general(v, w, v, w_star, slope=slope)
    true = model.gradient_w(v, w, v, w_star)
    inner: Tensor = (g * true).sum(-1)
    return inner / (g.norm(dim=-1) * true.norm(dim=-1)), inner


def _random_products(slope: Slope, seed: int) -> Tensor:
    """<E g, df/dw> over random v, w, v*, w* (m = 3, n = 4)."""
    generator = torch.Generator().manual_seed(seed)
    v, v_star, w, w_star = (
        torch.randn(_DRAWS, k, generator=generator, dtype=torch.float64) for k in (3, 3, 4, 4)
    )
    w_star = model.unit(w_star)
    g = coarse_general(v, w, v_star, w_star, slope=slope)
    products: Tensor = (g * model.gradient_w(v, w, v_star, w_star)).sum(-1)
    return products


def claims(found: Mapping[str, Finding]) -> tuple[Claim, ...]:
    """All claims of experiment b."""
    others = tuple(name for name in found if name not in PAPERS + MONOTONE)
    return (
        sign_claim(found, PAPERS, "arXiv:1903.05662, lemmas 5 and 8; arXiv:1808.05240"),
        sign_claim(found, MONOTONE, "the class of arXiv:2011.11256, in this model"),
        sign_claim(found, others, "ours: the sign is that of E[mu'(||w|| x) phi(x cot theta)]"),
        _global_claim(found),
        _spurious_claim(found),
    )


def sign_claim(found: Mapping[str, Finding], names: tuple[str, ...], source: str) -> Claim:
    """Whether <E g, df/dw> >= 0 on the random draws and over the angle."""
    least = {n: min(found[n].least, float(found[n].inner.min())) for n in names}
    worst = min(least, key=lambda name: least[name])
    cosine = {n: min(float(c.min()) for c in found[n].cosine.values()) for n in names}
    lowest = min(cosine, key=lambda name: cosine[name])
    return Claim(
        text=f"<E g, df/dw> >= 0 for {', '.join(names)} ({source})",
        verdict=verdict(least[worst] >= -ZERO),
        evidence=f"least of {_DRAWS} random draws and {_ANGLES - 2} angles {least[worst]:.1e} "
        f"({worst}); least cosine over the angle {cosine[lowest]:.4f} ({lowest})",
    )


def _global_claim(found: Mapping[str, Finding]) -> Claim:
    largest = max(found, key=lambda name: found[name].at_global)
    return Claim(
        text="the global minimum is stationary for every estimator (ours)",
        verdict=verdict(found[largest].at_global < ZERO),
        evidence=f"largest ||E g|| there {found[largest].at_global:.1e} ({largest})",
    )


def _spurious_claim(found: Mapping[str, Finding]) -> Claim:
    still = [name for name, one in found.items() if one.at_spurious < ZERO]
    moved = {name: one.at_spurious for name, one in found.items() if name not in still}
    error = max(abs(one.at_spurious - one.predicted) for one in found.values())
    return Claim(
        text="the spurious minimum is stationary for an estimator if and only if "
        "E[x mu'(x) 1{x < 0}] is 0: ||E g|| there is 2 (m - 1) s^2 / (m + 1)^2 times its size "
        "(ours; arXiv:1903.05662, lemmas 6 and 7, for identity and relu)",
        verdict=verdict(error < ZERO),
        evidence=f"largest difference of norm and formula {error:.0e}; stationary: "
        f"{', '.join(still) or 'none'}; ||E g|| of the others "
        + (", ".join(f"{name} {norm:.2g}" for name, norm in moved.items()) or "none"),
    )
