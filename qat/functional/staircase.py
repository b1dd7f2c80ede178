"""Staircase activations whose backward pass is a free choice: straight-through estimators.

The forward staircase and the coarse derivatives (in x and in the step alpha) are independent
arguments. The derivatives in alpha, and identity, relu and clipped_relu in x, are functions of the
interval that x falls into (`qat.functional.intervals`): one uint8 per element is all that their
backward pass needs, and the layer that follows keeps the same byte for its own
(`qat.functional.coded`). The other members of the family keep x.
"""

import functools
from typing import Any

import torch
from torch import Tensor

from qat.functional.coded import coded, keeps_codes, uncoded
from qat.functional.intervals import (
    BY_INDEX,
    Slopes,
    as_bytes,
    fits,
    gradients,
    step_slopes,
)
from qat.functional.kernels import Fused, apply, as_number, fuses, numbers, times, wide
from qat.functional.levels import Levels
from qat.functional.runtime import runtime
from qat.functional.stairs import Stairs
from qat.functional.ste import Sharpness, coarse_slope
from qat.names import Derivative, StepDerivative

# the clamp of the authors' code: a step that leaves this range has stopped meaning anything
STEP_MIN, STEP_MAX = 1e-3, 5.0


def staircase_ste(
    x: Tensor,
    alpha: Tensor,
    *,
    stairs: Stairs,
    derivative: Derivative = "clipped_relu",
    step_derivative: StepDerivative = "three_valued",
    sharpness: Sharpness | None = None,
) -> Tensor:
    """Staircase of x with step alpha and chosen coarse derivatives.

    Forward, with alpha clamped to [1e-3, 5] (the clamp passes the gradient):

        y = alpha * clip(ceil(x / alpha - shift), low, high)

    Behind a ReLU (`relu_stairs`, L = 2^b - 1): y = 0 for x <= 0, k alpha on ((k-1) alpha, k alpha],
    L alpha for x > L alpha. Derivative in x: any member of the family in `qat.functional.ste`, at
    z = x / alpha, among them

        identity      1
        relu          1 if x > 0 else 0
        clipped_relu  1 if 0 < x <= L alpha else 0

    Derivative in alpha, summed over all elements with the upstream gradient:

        exact         0 if x <= 0;  the code ceil(x / alpha) if 0 < x <= L alpha;  L above
        three_valued  0             2^(b-1), the mean of the codes                 L
        two_valued    0             0                                              L

    Signed (`signed_stairs`, M = 2^(b-1) - 1): nearest codes -M .. M, "0 < x" reads "not below the
    interval of -M", the codes' mean is 0 and the derivative in alpha below the range is -M.

    Args:
        x: any shape, floating point.
        alpha: step, 0-dim.
        stairs: the codes.
        derivative: coarse derivative in x.
        step_derivative: coarse derivative in alpha.
        sharpness: 0-dim parameter of a scheduled derivative in x; None takes its start.

    Returns:
        Tensor of x's shape and dtype; the arithmetic is float32 at least, also under autocast.

    Source: arXiv:1808.05240 (the staircase and the three derivatives in alpha, as in the authors'
    code); arXiv:1903.05662 (the three derivatives in x). Signed: ours.

    >>> x = torch.tensor([0.2, 0.7, 9.0], requires_grad=True)
    >>> two_bits = Stairs(low=0, high=3, first=1, shift=0.0)
    >>> y = staircase_ste(x, torch.tensor(0.5), stairs=two_bits, derivative="clipped_relu")
    >>> y.tolist(), torch.autograd.grad(y.sum(), x)[0].tolist()
    ([0.5, 1.0, 1.5], [1.0, 1.0, 0.0])
    """
    # asked here and not in the Function, where torch.func shows alpha without its gradient
    wanted = step_derivative if alpha.requires_grad else None
    if not torch.is_grad_enabled():
        derivative, wanted = "identity", None  # evaluation needs no index for a backward pass
    x = uncoded(x)
    keeps = keeps_codes(x)
    y: Tensor
    y, *kept = apply(StaircaseSte, x, alpha, sharpness, stairs, derivative, wanted, keeps)
    if not keeps:
        return y
    total = kept.pop() if kept[-1].dtype != torch.uint8 else None
    step = _step(alpha, x.dtype)
    levels = Levels(
        step, stairs.first - 1 if len(kept) == 1 else stairs.low, stairs.low, stairs.high
    )
    return coded(y, kept[-1], levels, total)


class StaircaseSte(torch.autograd.Function):
    """`staircase_ste` as a Function; outputs y, then the index or region and code, without grad.

    Last, where integers may be summed and the kernel is fused, the sum of y.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(  # noqa: D102
        x: Tensor,
        alpha: Tensor,
        sharpness: Sharpness | None,
        stairs: Stairs,
        derivative: Derivative,
        step_derivative: StepDerivative | None,
        keeps_codes: bool,
    ) -> tuple[Tensor, ...]:
        step = _step(alpha, x.dtype)
        needs = _needed(stairs, derivative, step_derivative)
        if keeps_codes:
            needs = 1 if fits(stairs) else 2
        if fuses(x):
            return _by_kernel(x, step, stairs, needs)
        codes = x.to(step.dtype) / step
        if stairs.shift:
            codes = codes.sub_(stairs.shift)
        # one interval beyond either end is all that backward tells apart
        codes = codes.ceil_().clamp_(stairs.first - 1, stairs.high + 1)
        kept = _kept(codes, stairs, needs)
        y = codes.clamp_(stairs.low, stairs.high).mul_(step)
        return (y.to(x.dtype), *kept)

    @staticmethod
    def setup_context(  # noqa: D102
        ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]
    ) -> None:
        x, alpha, sharpness, ctx.stairs, ctx.derivative, ctx.step_derivative, _ = inputs
        ctx.alpha_dtype = alpha.dtype
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)  # no zeros for the index
        by_value = [] if ctx.derivative in BY_INDEX else [x, alpha]
        ctx.sharpness = sharpness
        if by_value and isinstance(sharpness, Tensor):
            by_value.append(sharpness)
            ctx.sharpness = None
        ctx.kept_count = _needed(ctx.stairs, ctx.derivative, ctx.step_derivative)
        ctx.save_for_backward(*output[1 : 1 + ctx.kept_count], *by_value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:  # noqa: D102
        if grad is None:
            return (None,) * 7
        saved = ctx.saved_tensors  # once: under activation checkpointing a second look is refused
        kept, by_value = saved[: ctx.kept_count], saved[ctx.kept_count :]
        slopes = Slopes(
            BY_INDEX.get(ctx.derivative, BY_INDEX["identity"]),
            step_slopes(ctx.stairs, ctx.step_derivative) if ctx.step_derivative else None,
            is_exact=ctx.step_derivative == "exact",
        )
        in_x, in_step = ctx.needs_input_grad[:2]
        grad_x: Tensor | None = grad
        grad_alpha: Tensor | None = None
        if kept:
            wants = (in_x and ctx.derivative in BY_INDEX, in_step)
            grad_x, grad_alpha = gradients(grad, kept, ctx.stairs, slopes, wants)
        if in_x and ctx.derivative not in BY_INDEX:
            x, alpha, *moving = by_value
            grad_x = _times_slope(
                grad, x, alpha, moving[0] if moving else ctx.sharpness, ctx.stairs, ctx.derivative
            )
        if grad_alpha is not None:
            grad_alpha = grad_alpha.to(ctx.alpha_dtype)
        return grad_x if in_x else None, grad_alpha, None, None, None, None, None


def _step(alpha: Tensor, dtype: torch.dtype) -> Tensor:
    """Alpha in its range, in the dtype of the arithmetic."""
    return alpha.detach().clamp(STEP_MIN, STEP_MAX).to(wide(dtype))


def _needed(stairs: Stairs, derivative: Derivative, step_derivative: StepDerivative | None) -> int:
    """How many uint8 tensors backward needs: none, the index or region, or region and code."""
    if step_derivative is None and (derivative == "identity" or derivative not in BY_INDEX):
        return 0
    return 2 if step_derivative == "exact" and not fits(stairs) else 1


def _kept(codes: Tensor, stairs: Stairs, count: int) -> tuple[Tensor, ...]:
    """The index; or, where it does not fit into a byte, region and code; the first `count`."""
    if not count:
        return ()
    below = stairs.first - 1
    if fits(stairs):
        return (as_bytes(codes, below, stairs.high),)
    inside = (codes - below).clamp_(max=1)
    region = as_bytes(inside + (codes - stairs.high).clamp_(min=0), 0, 1)
    if count == 1:
        return (region,)
    return region, as_bytes(codes.clamp(stairs.low, stairs.high), stairs.low, stairs.high)


def _times_slope(
    grad: Tensor,
    x: Tensor,
    alpha: Tensor,
    sharpness: Sharpness | None,
    stairs: Stairs,
    derivative: Derivative,
) -> Tensor:
    """Gradient in x of a member that looks at the position z = x / alpha itself."""
    step = _step(alpha, x.dtype)
    if fuses(x):
        kernel = _slope_kernel(derivative, stairs)
        grad_x: Tensor = kernel.over(x, grad, step=step, sharpness=as_number(sharpness))
        return grad_x
    slope = coarse_slope(x.to(step.dtype) / step, derivative, stairs=stairs, sharpness=sharpness)
    return times(slope.to(grad.dtype), grad)


@functools.cache
def _slope_kernel(derivative: Derivative, stairs: Stairs) -> Fused:
    def kernel(x: Tensor, grad: Tensor, *, step: Tensor, sharpness: Tensor | None = None) -> Tensor:
        z = x.to(step.dtype) / step
        slope = coarse_slope(z, derivative, stairs=stairs, sharpness=sharpness)
        return slope.to(grad.dtype) * grad

    return Fused(kernel)


def _by_kernel(x: Tensor, step: Tensor, stairs: Stairs, needs: int) -> tuple[Tensor, ...]:
    rule = (stairs.shift, stairs.first - 1, stairs.high + 1, stairs.low, stairs.high)
    if needs and fits(stairs):
        kernel = _values_and_index if runtime().integer_forward == "off" else _values_index_and_sum
    else:
        kernel = _values_region_and_code if needs else _values
    parts: tuple[Tensor, ...] = kernel.over(x, step=step, rule=numbers(rule, x.device))
    return parts if kernel is _values_index_and_sum else parts[: 1 + needs]


def _codes(x: Tensor, step: Tensor, rule: Tensor) -> Tensor:
    return (x.to(step.dtype) / step - rule[0]).ceil().clamp(rule[1], rule[2])


@Fused
def _values(x: Tensor, *, step: Tensor, rule: Tensor) -> tuple[Tensor, ...]:
    return ((_codes(x, step, rule).clamp(rule[3], rule[4]) * step).to(x.dtype),)


@Fused
def _values_and_index(x: Tensor, *, step: Tensor, rule: Tensor) -> tuple[Tensor, ...]:
    codes = _codes(x, step, rule)
    y = (codes.clamp(rule[3], rule[4]) * step).to(x.dtype)
    return y, (codes - rule[1]).to(torch.uint8)


@Fused
def _values_index_and_sum(x: Tensor, *, step: Tensor, rule: Tensor) -> tuple[Tensor, ...]:
    codes = _codes(x, step, rule)
    levels = codes.clamp(rule[3], rule[4]) * step
    return levels.to(x.dtype), (codes - rule[1]).to(torch.uint8), levels.sum()


@Fused
def _values_region_and_code(x: Tensor, *, step: Tensor, rule: Tensor) -> tuple[Tensor, ...]:
    codes = _codes(x, step, rule)
    code = codes.clamp(rule[3], rule[4])
    region = (codes - rule[1]).clamp(max=1) + (codes - rule[4]).clamp(min=0)
    return (code * step).to(x.dtype), region.to(torch.uint8), (code - rule[3]).to(torch.uint8)
