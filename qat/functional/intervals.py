"""Interval indices: what a quantizer's backward pass needs, as one byte per element.

Every input falls into one of n + 2 intervals, numbered by an index:

    0        below the first level's interval
    1 .. n   on the interval of one of the n codes `first .. high`
    n + 1    above the last level's interval

A gradient that depends on the index alone is a `Slopes`: three numbers, for below, inside and
above, times the upstream gradient. Where n + 1 = 256 is too large for a byte there are two: the
region (0, 1, 2) and the code.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from qat.functional.kernels import Fused, fuses, numbers, times, wide
from qat.functional.stairs import Stairs
from qat.names import Derivative, StepDerivative

Three = tuple[int, int, int]

# the members of the family of coarse derivatives that are functions of the interval
BY_INDEX: dict[Derivative, Three] = {
    "identity": (1, 1, 1),
    "relu": (0, 1, 1),
    "clipped_relu": (0, 1, 0),
}


@dataclass(frozen=True, slots=True)
class Slopes:
    """Derivatives of a quantizer, by interval.

    Attributes:
        in_x: below, inside and above the range, each 0 or 1.
        in_step: the same for the step, integers; None where the step is not learned.
        is_exact: whether the derivative in the step is the code itself, whatever `in_step` says.
    """

    in_x: Three
    in_step: Three | None = None
    is_exact: bool = False


def step_slopes(stairs: Stairs, step_derivative: StepDerivative) -> Three:
    """The three numbers of a staircase's derivative in its step."""
    return (stairs.low, stairs.mean if step_derivative == "three_valued" else 0, stairs.high)


def fits(stairs: Stairs) -> bool:
    """Whether the index of this staircase fits into a byte."""
    return stairs.count + 1 <= torch.iinfo(torch.uint8).max


def as_bytes(codes: Tensor, lowest: int, high: int) -> Tensor:
    """Codes lowest .. high + 1 minus `lowest` as uint8, by conversions that are fast on CPUs."""
    if torch.compiler.is_compiling():
        return (codes - lowest).to(torch.uint8)
    narrow = torch.int8 if high < torch.iinfo(torch.int8).max else torch.int32
    # a negative code wraps around, and so does the difference: the result is right modulo 256
    small = codes.to(narrow)
    small = small.view(torch.uint8) if narrow == torch.int8 else small.to(torch.uint8)
    return small.sub_(lowest) if lowest else small


def gradients(
    grad: Tensor, kept: tuple[Tensor, ...], stairs: Stairs, slopes: Slopes, wants: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients in x and in the step.

    Args:
        grad: upstream gradient, of x's shape.
        kept: the index; or region and code.
        stairs: the codes.
        slopes: the derivatives.
        wants: whether the gradient in x is wanted, and that in the step.

    Returns:
        The gradient in x, of `grad`'s dtype, and that in the step, 0-dim and float32 at least; None
        for what is not wanted.
    """
    in_x, in_step = wants
    passes = in_x and slopes.in_x == BY_INDEX["identity"]
    if fuses(kept[0], grad) and not (passes and not in_step):
        return _by_kernel(grad, kept, stairs, slopes, wants)
    grad_x = grad if passes else _in_x(grad, kept[0], stairs, slopes.in_x) if in_x else None
    if not in_step:
        return grad_x, None
    # in half precision the product of a scaled gradient and a code may overflow
    slope = _step_slope(kept, stairs, slopes)
    return grad_x, times(slope.to(wide(grad.dtype)), grad).sum()


def _in_x(grad: Tensor, index: Tensor, stairs: Stairs, in_x: Three) -> Tensor:
    if in_x == BY_INDEX["relu"]:
        mask = index.clamp(max=1)
    else:
        mask = _between(index, 1, stairs.count if fits(stairs) else 1)
    return times(mask.to(grad.dtype), grad)  # a product of mixed types is slower


def _step_slope(kept: tuple[Tensor, ...], stairs: Stairs, slopes: Slopes) -> Tensor:
    """Derivative of the staircase in alpha, per element, as small integers."""
    if slopes.is_exact:
        if len(kept) == 2:
            return kept[1].float() + stairs.low
        return (kept[0].float() + (stairs.first - 1)).clamp_(stairs.low, stairs.high)
    assert slopes.in_step is not None
    below, inside, above = slopes.in_step
    count = stairs.count if fits(stairs) else 1
    # every value fits into the uint8 behind a ReLU; signed slopes need a wider integer
    index = kept[0].short() if below < 0 else kept[0]
    slope = _between(index, count + 1, count + 1) * above
    if below:
        slope = slope + _between(index, 0, 0) * below
    if inside:
        slope = slope + _between(index, 1, count) * inside
    return slope


def _between(index: Tensor, low: int, high: int) -> Tensor:
    """1 where low <= index <= high, else 0, as integers of the index's dtype."""
    if torch.compiler.is_compiling():
        # a bool in the graph breaks the vectorised loop of CPU kernels; float arithmetic does not
        wide = index.float()
        return (wide - (low - 1)).clamp(0, 1) - (wide - high).clamp(0, 1)
    if index.dtype == torch.uint8:
        # uint8 wraps around, so one comparison tests both ends; the view as uint8 is free
        return (index - low).le_(high - low) if low else index.le(high).view(torch.uint8)
    return (index.ge(low) & index.le(high)).to(index.dtype)


def _by_kernel(
    grad: Tensor, kept: tuple[Tensor, ...], stairs: Stairs, slopes: Slopes, wants: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    index = kept[0]
    has_code = len(kept) == 2
    # where the code is apart, it is never exact here that the index gives it
    offset = stairs.low if has_code else stairs.first - 1
    step = (0, 0, 0, 1) if slopes.is_exact else (*(slopes.in_step or (0, 0, 0)), 0)
    count = stairs.count if fits(stairs) else 1
    rule = numbers((count, *slopes.in_x, *step, offset, stairs.low, stairs.high), index.device)
    if not wants[1]:
        return _kernel_in_x.over(index, grad, rule=rule), None
    grad_x, grad_step = _kernel.over(index, kept[-1], grad, rule=rule)
    return grad_x if wants[0] else None, grad_step


def _regions(index: Tensor, rule: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """1 below, inside and above, else 0, by float arithmetic: bools would break the loop."""
    i = index.float()
    above = (i - rule[0]).clamp(min=0)
    inside = i.clamp(max=1) - above
    return 1 - inside - above, inside, above


@Fused
def _kernel_in_x(index: Tensor, grad: Tensor, *, rule: Tensor) -> Tensor:
    below, inside, above = _regions(index, rule)
    return (grad * (below * rule[1] + inside * rule[2] + above * rule[3])).to(grad.dtype)


@Fused
def _kernel(index: Tensor, code: Tensor, grad: Tensor, *, rule: Tensor) -> tuple[Tensor, Tensor]:
    below, inside, above = _regions(index, rule)
    in_x = (grad * (below * rule[1] + inside * rule[2] + above * rule[3])).to(grad.dtype)
    slope = below * rule[4] + inside * rule[5] + above * rule[6]
    slope = slope + rule[7] * (code.float() + rule[8]).clamp(rule[9], rule[10])
    return in_x, (grad.to(wide(grad.dtype)) * slope).sum()
