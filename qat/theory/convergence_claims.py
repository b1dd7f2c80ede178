"""Claims of arXiv:1903.05662 about descent with coarse gradients, judged by experiment a.

Each function looks at numbers only, so that a wrong gradient makes its claim fail.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from qat.theory.descent import Path, end_points
from qat.theory.experiment import Claim, verdict

PAPER = "arXiv:1903.05662"
# parts of the starts, as the experiment's table names them
ANYWHERE, EASY = "anywhere", "anywhere, no spurious minimum exists"
BESIDE, FAR = "beside the spurious minimum", "v = (.5, .1, 0), w = (.2, 1)"
# the estimators whose descent the paper proves
SAFE = ("relu", "clipped_relu")
# what rounding leaves of a zero gradient
_ZERO = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """Numbers of experiment a.

    Attributes:
        paths: estimator -> part of the starts -> what its runs went through.
        norms: estimator -> kind of point -> norm of (df/dv, E g) there.
        predicted_norm: lemma 7's norm of the identity's E g at the spurious minimum.
        step_factors: estimator -> C, no single step with eta <= C ||w||^2 raises f; 0 if none.
        ratios: `gap` = pi - theta, and estimator -> lemma 5's ratio there, from near to far.
        etas_beside: steps of the runs beside the spurious minimum.
    """

    paths: Mapping[str, Mapping[str, Path]]
    norms: Mapping[str, Mapping[str, float]]
    predicted_norm: float
    step_factors: Mapping[str, float]
    ratios: Mapping[str, list[float]]
    etas_beside: tuple[float, ...]


def claims(found: Findings) -> tuple[Claim, ...]:
    """All claims of experiment a, in the paper's order."""
    safe = [claim(found, name) for name in SAFE for claim in (descends, converges)]
    return (
        no_spurious_minimum(found),
        stationary_points(found),
        *safe,
        identity_not_stationary(found),
        identity_fails(found),
        ratio_diverges(found),
    )


def no_spurious_minimum(found: Findings) -> Claim:
    """Proposition 1, both directions."""
    easy = {name: end_points(found.paths[name][EASY]) for name in SAFE}
    hard = {name: end_points(found.paths[name][ANYWHERE]) for name in SAFE}
    runs = found.paths[SAFE[0]][EASY].loss.shape[1]
    all_global = all(ends["global"] == runs for ends in easy.values())
    return Claim(
        text="spurious minima exist if and only if s^2 < (m + 1) / 2 ||v*||^2 "
        f"({PAPER}, proposition 1)",
        verdict=verdict(all_global and all(ends["spurious"] > 0 for ends in hard.values())),
        evidence="; ".join(
            f"{name}: {hard[name]['spurious']} of {runs} runs end at one if so, "
            f"{runs - easy[name]['global']} miss the global minimum if not"
            for name in SAFE
        ),
    )


def stationary_points(found: Findings) -> Claim:
    """Lemma 6."""
    largest = {name: max(found.norms[name].values()) for name in SAFE}
    return Claim(
        text="relu and clipped_relu: the expected coarse gradient vanishes at the minimisers and "
        f"the saddles ({PAPER}, lemma 6)",
        verdict=verdict(max(largest.values()) < _ZERO),
        evidence="largest norm at the three kinds of point: "
        + ", ".join(f"{name} {norm:.0e}" for name, norm in largest.items()),
    )


def descends(found: Findings, name: str) -> Claim:
    """Theorem 1, descent: for every lower bound of ||w|| there is a small enough eta."""
    places, factor = found.paths[name], found.step_factors[name]
    beside, path = places[BESIDE].largest_rise, places[ANYWHERE]
    rising = int(path.rises.any(dim=0).sum())
    return Claim(
        text=f"{name}: f falls in every step if eta is small and ||w|| >= c_w ({PAPER}, theorem 1)",
        verdict=verdict(factor > 0 and beside < _ZERO, condition=rising > 0),
        evidence=f"no single step from random states with eta <= {factor:g} ||w||^2 raises f; "
        f"beside the spurious minimum f rises by at most {beside:.0e}; ||w|| >= c_w has to be "
        f"given: at the constant eta = 0.05 {rising} of {path.loss.shape[1]} runs pass close to "
        f"w = 0 (||w|| <= {path.norm_of_rise:.3f}) and f rises there, by up to "
        f"{path.largest_rise:.2g}",
    )


def converges(found: Findings, name: str) -> Claim:
    """Theorem 1, convergence."""
    parts = (ANYWHERE, EASY, BESIDE, FAR)
    ends = [end_points(found.paths[name][place]) for place in parts]
    total = {kind: sum(end[kind] for end in ends) for kind in ends[0]}
    return Claim(
        text=f"{name}: the iterates converge to a minimiser, global or spurious, or to a saddle "
        f"({PAPER}, theorem 1)",
        verdict=verdict(total["elsewhere"] == 0),
        evidence=", ".join(f"{count} {kind}" for kind, count in total.items())
        + f", of {sum(total.values())} runs",
    )


def identity_not_stationary(found: Findings) -> Claim:
    """Lemma 7."""
    norm, predicted = found.norms["identity"]["spurious"], found.predicted_norm
    return Claim(
        text="identity: the coarse gradient does not vanish at the spurious minimum, its norm is "
        f"2 (m - 1) s^2 / (sqrt(2 pi) (m + 1)^2) ({PAPER}, lemma 7)",
        verdict=verdict(norm > _ZERO and abs(norm - predicted) < _ZERO),
        evidence=f"norm {norm:.6f}, formula {predicted:.6f}; relu "
        f"{found.norms['relu']['spurious']:.0e}",
    )


def identity_fails(found: Findings) -> Claim:
    """After lemma 8 and in theorem 1's remark: no eta makes it descend."""
    path, relu = found.paths["identity"][BESIDE], found.paths["relu"][BESIDE]
    etas, first = found.etas_beside, path.rises.int().argmax(dim=0).tolist()
    rises = path.loss.diff(dim=0).amax(dim=0).tolist()
    restless, of = end_points(path)["elsewhere"], path.loss.shape[1]
    times = ", ".join(f"{eta * step:.2f}" for eta, step in zip(etas, first, strict=True))
    return Claim(
        text="identity: descent and convergence fail near the spurious minimum, however small eta "
        f"({PAPER}, after lemma 8)",
        verdict=verdict(min(rises) > 1e3 * _ZERO and restless == of),
        evidence=f"eta = {', '.join(map(str, etas))}: f rises by up to "
        f"{', '.join(f'{rise:.3f}' for rise in rises)} in one step; ||w|| shrinks to 0 at the rate "
        f"of lemma 7, so that f first rises at eta t = {times} (||w|| / rate = "
        f"{float(path.norm[0, 0]) / found.predicted_norm:.2f}); {restless} of {of} never rest; "
        f"relu from the same starts: largest rise {relu.largest_rise:.0e}, "
        f"{end_points(relu)['spurious']} rest at the spurious minimum; what fails is ||w|| >= c_w: "
        f"single steps with eta <= {found.step_factors['identity']:g} ||w||^2 descend here too",
    )


def ratio_diverges(found: Findings) -> Claim:
    """Lemma 8 against lemma 5."""
    gap, identity = found.ratios["gap"], found.ratios["identity"]
    near, far = 0, 20
    growth = identity[near] / identity[far]
    safe = {name: max(found.ratios[name]) for name in SAFE}
    return Claim(
        text="||E g||^2 / (||df/dv||^2 + <E g, df/dw>) is bounded for relu and clipped_relu and "
        f"unbounded near the spurious minimum for the identity ({PAPER}, lemmas 5 and 8)",
        verdict=verdict(growth > 50 and all(value < 10 for value in safe.values())),
        evidence=f"identity: grows {growth:.4g} times from pi - theta = {gap[far]:.0e} to "
        f"{gap[near]:.0e}, to {identity[near]:.3g}; largest for "
        + ", ".join(f"{name} {value:.3g}" for name, value in safe.items()),
    )
