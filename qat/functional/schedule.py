"""Schedules: optimizer step (0, 1, 2, ...) -> value. Plain functions that return functions."""

import math
from collections.abc import Callable

Schedule = Callable[[int], float]


def constant(value: float) -> Schedule:
    """The same value at every step."""
    return lambda step: value


def relaxation(initial: float, growth: float, hard_from: int) -> Schedule:
    """BinaryRelax's theta: lambda / (1 + lambda) with geometric lambda, then 1.

        lambda_t = initial * growth^t,  theta_t = lambda_t / (1 + lambda_t)   for t < hard_from
        theta_t = 1                                                          from hard_from on

    theta_t is what optimizer step t sees, so the very first step sees `initial` itself; whether the
    paper multiplies before the first step is left open there.

    Args:
        initial: lambda_0 > 0.
        growth: factor per optimizer step, >= 1.
        hard_from: first step of the hard phase (0: hard at once).

    Source: arXiv:1801.06313; geometric growth as in the authors' code.
    """

    def theta(step: int) -> float:
        if step >= hard_from:
            return 1.0
        # 1 / (1 + 1 / lambda) with an exponential that cannot overflow
        return 1.0 / (1.0 + math.exp(-step * math.log(growth)) / initial)

    return theta


def delayed(schedule: Schedule, steps: int, *, before: float = 0.0) -> Schedule:
    """`before` during the first `steps` steps, then `schedule` counted from there."""
    return lambda step: before if step < steps else schedule(step - steps)


def cosine(steps: int, *, warmup: int = 0, final: float = 0.0) -> Schedule:
    """Factor 1 -> `final` along half a cosine, after a linear warm-up from 1 / (warmup + 1).

    Args:
        steps: length of the whole schedule, >= 1; later steps keep the last value.
        warmup: steps of the linear part, < steps.
        final: value at the end, 0..1.
    """

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        progress = min(1.0, (step - warmup) / max(1, steps - warmup))
        return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))

    return factor


def stepwise(milestones: tuple[int, ...], *, gamma: float, warmup: int = 0) -> Schedule:
    """Factor gamma^k after the k-th of the ascending `milestones`, with a linear warm-up."""

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return float(gamma ** sum(step >= milestone for milestone in milestones))

    return factor
