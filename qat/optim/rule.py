"""Update rules: two schedules in [0, 1] that tell how latent and forward weights mix.

At optimizer step t, with latent weights w, forward weights x and the projection Q on the grid,

    x     = (1 - theta_t) w + theta_t Q(w)      relax: what the forward pass sees
    start = (1 - rho_t)   w + rho_t   x         blend: where the gradient step starts
    w'    = start - lr * direction(grad at x)   base optimizer, untouched
"""

from dataclasses import dataclass

from qat.errors import SpecError
from qat.functional.schedule import Schedule, constant, delayed, relaxation


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateRule:
    """A weight-update method as its two schedules; the argument is the number of completed steps.

    Attributes:
        blend: rho_t, 0 (the step starts at the latent weights) .. 1 (at the forward weights).
        relax: theta_t, 0 (float forward weights) .. 1 (forward weights on the grid).
    """

    blend: Schedule
    relax: Schedule

    def after_warm_start(self, steps: int) -> "UpdateRule":
        """This rule after `steps` optimizer steps of float training (rho = theta = 0)."""
        if steps == 0:
            return self
        return UpdateRule(blend=delayed(self.blend, steps), relax=delayed(self.relax, steps))


def float_only() -> UpdateRule:
    """Float training: rho = 0, theta = 0; the base optimizer bit for bit."""
    return UpdateRule(blend=constant(0.0), relax=constant(0.0))


def binary_connect() -> UpdateRule:
    """BinaryConnect: rho = 0, theta = 1; the gradient at Q(w) moves w.

    Unlike the paper, with a scale and without clipping the latent weights.

    Source: arXiv:1511.00363.
    """
    return UpdateRule(blend=constant(0.0), relax=constant(1.0))


def bcgd(rho: float = 1e-5) -> UpdateRule:
    """Blended coarse gradient descent: constant rho, theta = 1.

    Args:
        rho: 0 (BinaryConnect) .. 1 (projected gradient).

    Raises:
        SpecError: rho outside [0, 1].

    Source: arXiv:1808.05240.
    """
    if not 0 <= rho <= 1:
        raise SpecError(f"rho must be 0..1, got {rho}; the paper's is 1e-5")
    return UpdateRule(blend=constant(rho), relax=constant(1.0))


def binary_relax(initial: float = 1.0, growth: float = 1.02, *, hard_from: int) -> UpdateRule:
    """BinaryRelax: rho = 0, theta = lambda / (1 + lambda) with growing lambda, then theta = 1.

    Args:
        initial: lambda at step 0, > 0.
        growth: factor of lambda per optimizer step, >= 1.
        hard_from: optimizer step at which the hard phase (BinaryConnect) begins.

    Raises:
        SpecError: a number out of range.

    Source: arXiv:1801.06313 (closed form of the Moreau envelope's prox; two phases).
    """
    if not (initial > 0 and growth >= 1 and hard_from >= 0):
        raise SpecError(
            "binary_relax needs initial > 0, growth >= 1 and hard_from >= 0; "
            f"got initial={initial}, growth={growth}, hard_from={hard_from}"
        )
    return UpdateRule(blend=constant(0.0), relax=relaxation(initial, growth, hard_from))


def rule_from_numbers(
    name: str,
    steps: int,
    *,
    rho: float = 1e-5,
    initial: float = 1.0,
    final: float = 359.0,
    hard_from: float = 0.75,
) -> UpdateRule:
    """The rule `name` for a quantized phase of `steps` optimizer steps.

    Durations are fractions of the phase: lambda of binary_relax grows from `initial` to `final`
    during the first `hard_from` of it, so one setting serves runs of any length.

    Raises:
        SpecError: unknown name or a number out of range.
    """
    if name == "bcgd":
        return bcgd(rho)
    if name == "binary_relax":
        hard_step = round(hard_from * steps)
        growth = (final / initial) ** (1 / max(1, hard_step))
        return binary_relax(initial, growth, hard_from=hard_step)
    factories = {"float_only": float_only, "binary_connect": binary_connect}
    if name not in factories:
        known = ", ".join([*factories, "binary_relax", "bcgd"])
        raise SpecError(f"rule must be one of {known}; got {name!r}")
    return factories[name]()
