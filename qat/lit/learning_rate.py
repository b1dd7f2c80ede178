"""Learning-rate factor over a run: each phase goes through the whole schedule."""

from collections.abc import Callable

from qat.functional.schedule import Schedule, constant, cosine, delayed, stepwise
from qat.spec.run import SchedulerSpec


def phase_factor(spec: SchedulerSpec, warm_steps: int, total: int) -> Callable[[int], float]:
    """Factor of the learning rate at each optimizer step; each phase runs the whole schedule."""
    quantized = _factor(spec, total - warm_steps)
    if warm_steps == 0:
        return quantized
    warm = _factor(spec, warm_steps)
    restarted = delayed(quantized, warm_steps)
    return lambda step: warm(step) if step < warm_steps else restarted(step)


def _factor(spec: SchedulerSpec, steps: int) -> Schedule:
    warmup = round(spec.warmup * steps)
    if spec.name == "cosine":
        return cosine(max(1, steps), warmup=warmup, final=spec.final)
    if spec.name == "step":
        milestones = tuple(round(m * steps) for m in spec.milestones)
        return stepwise(milestones, gamma=spec.gamma, warmup=warmup)
    return constant(1.0) if warmup == 0 else stepwise((), gamma=1.0, warmup=warmup)
