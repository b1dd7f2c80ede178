"""Staircase activations whose backward pass is a free choice: straight-through estimators.

The forward staircase and the coarse derivatives (in x and in the step alpha) are independent
arguments. Every input falls into one of n + 2 intervals, numbered by `index`:

    0        below the first level's interval
    1 .. n   on the interval of one of the n codes `first .. high`
    n + 1    above the last level's interval

The derivatives in alpha, and identity, relu and clipped_relu in x, are functions of that index
alone, so one uint8 per element is all that their backward pass needs; the other members of the
family keep x. Bools are avoided on purpose: on CPUs they cost several times an uint8.
"""

from typing import Any

import torch
from torch import Tensor

from qat.functional.stairs import Stairs
from qat.functional.ste import Sharpness, coarse_slope
from qat.names import Derivative, StepDerivative

# the clamp of the authors' code: a step that leaves this range has stopped meaning anything
STEP_MIN, STEP_MAX = 1e-3, 5.0
_BY_INDEX: tuple[Derivative, ...] = ("identity", "relu", "clipped_relu")


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
    outputs: tuple[Tensor, ...] = StaircaseSte.apply(
        x, alpha, sharpness, stairs, derivative, wanted
    )
    return outputs[0]


class StaircaseSte(torch.autograd.Function):
    """`staircase_ste` as a Function; outputs y and what backward needs, the latter without grad."""

    generate_vmap_rule = True

    @staticmethod
    def forward(  # noqa: D102
        x: Tensor,
        alpha: Tensor,
        sharpness: Sharpness | None,
        stairs: Stairs,
        derivative: Derivative,
        step_derivative: StepDerivative | None,
    ) -> tuple[Tensor, ...]:
        wide = x if x.dtype == torch.float64 else x.float()
        step = alpha.detach().clamp(STEP_MIN, STEP_MAX).to(wide.dtype)
        codes = wide / step
        if stairs.shift:
            codes = codes.sub_(stairs.shift)
        # one interval beyond either end is all that backward tells apart
        codes = codes.ceil_().clamp_(stairs.first - 1, stairs.high + 1)
        kept = _kept(codes, stairs, derivative, step_derivative)
        y = codes.clamp_(stairs.low, stairs.high).mul_(step)
        return (y.to(x.dtype), *kept)

    @staticmethod
    def setup_context(  # noqa: D102
        ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]
    ) -> None:
        x, alpha, sharpness, ctx.stairs, ctx.derivative, ctx.step_derivative = inputs
        ctx.alpha_dtype = alpha.dtype
        ctx.mark_non_differentiable(*output[1:])
        by_value = [] if ctx.derivative in _BY_INDEX else [x, alpha]
        ctx.sharpness = sharpness
        if by_value and isinstance(sharpness, Tensor):
            by_value.append(sharpness)
            ctx.sharpness = None
        ctx.kept_count = len(output) - 1
        ctx.save_for_backward(*output[1:], *by_value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        saved = ctx.saved_tensors  # once: under activation checkpointing a second look is refused
        kept, by_value = saved[: ctx.kept_count], saved[ctx.kept_count :]
        grad_x = grad_alpha = None
        if ctx.needs_input_grad[0] and by_value:
            x, alpha, *moving = by_value
            sharpness = moving[0] if moving else ctx.sharpness
            z = _position(x, alpha)
            slope = coarse_slope(z, ctx.derivative, stairs=ctx.stairs, sharpness=sharpness)
            grad_x = slope.to(grad.dtype).mul_(grad)
        elif ctx.needs_input_grad[0]:
            grad_x = _grad_x(grad, kept, ctx.stairs, ctx.derivative)
        if ctx.needs_input_grad[1]:
            slope = _step_slope(kept, ctx.stairs, ctx.step_derivative)
            wide = torch.promote_types(grad.dtype, torch.float32)
            # in half precision the product of a scaled gradient and a code may overflow
            grad_alpha = slope.to(wide).mul_(grad).sum().to(ctx.alpha_dtype)
        return grad_x, grad_alpha, None, None, None, None


def _kept(
    codes: Tensor, stairs: Stairs, derivative: Derivative, step_derivative: StepDerivative | None
) -> tuple[Tensor, ...]:
    """The uint8 tensors that backward needs: none, the index, or, for 8 bits, region and code."""
    if step_derivative is None and (derivative == "identity" or derivative not in _BY_INDEX):
        return ()
    below = stairs.first - 1
    if _fits(stairs):
        return (_small(codes, below, stairs.high),)
    # n + 1 = 256 does not fit: keep only below / inside / above, and the code where it is needed
    inside = (codes - below).clamp_(max=1)
    region = _small(inside + (codes - stairs.high).clamp_(min=0), 0, 1)
    if step_derivative != "exact":
        return (region,)
    return region, _small(codes.clamp(stairs.low, stairs.high), stairs.low, stairs.high)


def _small(codes: Tensor, lowest: int, high: int) -> Tensor:
    """Codes lowest .. high + 1 minus `lowest` as uint8, by conversions that are fast on CPUs."""
    if torch.compiler.is_compiling():
        return (codes - lowest).to(torch.uint8)
    narrow = torch.int8 if high < torch.iinfo(torch.int8).max else torch.int32
    # a negative code wraps around, and so does the difference: the result is right modulo 256
    small = codes.to(narrow)
    small = small.view(torch.uint8) if narrow == torch.int8 else small.to(torch.uint8)
    return small.sub_(lowest) if lowest else small


def _fits(stairs: Stairs) -> bool:
    return stairs.count + 1 <= torch.iinfo(torch.uint8).max


def _grad_x(
    grad: Tensor, kept: tuple[Tensor, ...], stairs: Stairs, derivative: Derivative
) -> Tensor:
    if derivative == "identity":
        return grad
    if derivative == "relu":
        mask = kept[0].clamp(max=1)
    else:
        mask = _between(kept[0], 1, stairs.count if _fits(stairs) else 1)
    return mask.to(grad.dtype).mul_(grad)  # a product of mixed types is slower


def _position(x: Tensor, alpha: Tensor) -> Tensor:
    """Z = x / alpha in float32 at least, as the forward pass saw it."""
    wide = x if x.dtype == torch.float64 else x.float()
    return wide / alpha.detach().clamp(STEP_MIN, STEP_MAX).to(wide.dtype)


def _step_slope(
    kept: tuple[Tensor, ...], stairs: Stairs, step_derivative: StepDerivative
) -> Tensor:
    """Derivative of the staircase in alpha, per element, as small integers."""
    if step_derivative == "exact":
        if len(kept) == 2:
            return kept[1].float() + stairs.low
        return (kept[0].float() + (stairs.first - 1)).clamp_(stairs.low, stairs.high)
    count = stairs.count if _fits(stairs) else 1
    # every value fits into the uint8 behind a ReLU; signed slopes need a wider integer
    index = kept[0] if stairs.low == 0 else kept[0].short()
    slope = _between(index, count + 1, count + 1) * stairs.high
    if stairs.low:
        slope = slope + _between(index, 0, 0) * stairs.low
    if step_derivative == "three_valued" and stairs.mean:
        slope = slope + _between(index, 1, count) * stairs.mean
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
