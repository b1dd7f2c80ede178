"""Learned clip (PACT): nearest levels inside a clip that has the gradient of the formula.

The rounding has a coarse derivative, the identity unless chosen otherwise.
"""

import functools
from typing import Any

import torch
from torch import Tensor

from qat.functional.coded import coded, keeps_codes, uncoded
from qat.functional.intervals import Slopes, fits, gradients
from qat.functional.kernels import Fused, apply, as_number, fuses, wide
from qat.functional.levels import Levels
from qat.functional.lsq import lsq_codes
from qat.functional.stairs import Stairs
from qat.functional.ste import Sharpness, coarse_slope, estimator
from qat.names import Derivative


def pact_ste(
    x: Tensor,
    clip: Tensor,
    *,
    stairs: Stairs,
    derivative: Derivative = "identity",
    sharpness: Sharpness | None = None,
) -> Tensor:
    """Levels of a learned clip a.

        y = s round(clip(x, -a or 0, a) / s),   s = a / high

    -a if the codes are signed. Gradients, with m as in `lsq_ste`:

        d y / d x = m [-a or 0 <= x < a]
        d y / d a = 1 if x >= a;  -1 if x < -a, where the codes are signed;  else 0

    Args:
        x: any shape, floating point.
        clip: a > 0, 0-dim.
        stairs: the codes, low = 0 or -high; halves round down.
        derivative: coarse derivative of the rounding.
        sharpness: 0-dim parameter of a scheduled derivative; None takes its start.

    Raises:
        SpecError: no such derivative.

    Returns:
        Tensor of x's shape and dtype; the arithmetic is float32 at least.

    Source: arXiv:1805.06085; signed: ours.

    >>> x = torch.tensor([-1.0, 0.4, 9.0], requires_grad=True)
    >>> a = torch.tensor(1.5, requires_grad=True)
    >>> y = pact_ste(x, a, stairs=Stairs(low=0, high=3, first=0, shift=0.5))
    >>> y.tolist(), [g.tolist() for g in torch.autograd.grad(y.sum(), (x, a))]
    ([0.0, 0.5, 1.5], [[0.0, 1.0, 0.0], 1.0])
    """
    estimator(derivative)
    x = uncoded(x)
    keeps = keeps_codes(x)
    indexed = torch.is_grad_enabled() and derivative in _INDEXED
    needs = (1 if fits(stairs) else 2) if keeps else int(indexed)
    y: Tensor
    y, *kept = apply(PactSte, x, clip, sharpness, stairs, derivative, needs)
    if not keeps:
        return y
    step = clip.detach().to(wide(x.dtype)) / stairs.high
    offset = stairs.first - 1 if len(kept) == 1 else stairs.low
    return coded(y, kept[-1], Levels(step, offset, stairs.low, stairs.high))


# members whose slope is 1 between the lowest and the highest level
_INDEXED: tuple[Derivative, ...] = ("identity", "relu", "clipped_relu", "log_tailed_relu")


class PactSte(torch.autograd.Function):
    """`pact_ste` as a Function; outputs y, then `needs` of index, or region and code, without grad.

    Slopes of `_INDEXED` members are functions of the interval; the others look at x again.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(  # noqa: D102
        x: Tensor,
        clip: Tensor,
        sharpness: Sharpness | None,
        stairs: Stairs,
        derivative: Derivative,
        needs: int,
    ) -> tuple[Tensor, ...]:
        a = clip.detach().to(wide(x.dtype))
        if fuses(x):
            parts: tuple[Tensor, ...] = _pact_forward(stairs, needs).over(
                x, a=a, step=a / stairs.high
            )
            return parts
        return _pact(x, a, a / stairs.high, stairs, needs)

    @staticmethod
    def setup_context(  # noqa: D102
        ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]
    ) -> None:
        x, clip, sharpness, ctx.stairs, ctx.derivative, _ = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)  # no zeros for the index
        ctx.clip_dtype = clip.dtype
        ctx.sharpness = None if isinstance(sharpness, Tensor) else sharpness
        moving = (sharpness,) if isinstance(sharpness, Tensor) else ()
        if ctx.derivative in _INDEXED:
            ctx.save_for_backward(*output[1:2])
        else:
            ctx.save_for_backward(x, clip, *moving)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:  # noqa: D102
        if grad is None:
            return (None,) * 6
        saved = ctx.saved_tensors  # once: under activation checkpointing a second look is refused
        stairs = ctx.stairs
        if ctx.derivative in _INDEXED:
            slopes = Slopes((0, 1, 0), (-1 if stairs.low else 0, 0, 1))
            grad_x, grad_clip = gradients(grad, saved, stairs, slopes, ctx.needs_input_grad[:2])
            if grad_clip is not None:
                grad_clip = grad_clip.to(ctx.clip_dtype)
            return grad_x, grad_clip, None, None, None, None
        x, clip, *moving = saved
        sharpness = moving[0] if moving else ctx.sharpness
        a = clip.detach().to(wide(x.dtype))
        if fuses(x):
            kernel = _pact_backward(stairs, ctx.derivative)
            grad_x, grad_clip = kernel.over(x, grad, a=a, sharpness=as_number(sharpness))
        else:
            grad_x, per_element = _pact_slopes(grad, x, a, stairs, ctx.derivative, sharpness)
            grad_clip = per_element.sum()
        return grad_x, grad_clip.to(clip.dtype), None, None, None, None


def _clipped(x: Tensor, a: Tensor, stairs: Stairs) -> tuple[Tensor, Tensor, Tensor]:
    """X in its clip and in the dtype of a, whether it lies above, and below."""
    low = -a if stairs.low else torch.zeros_like(a)
    wide = x.to(a.dtype)
    above, below = wide >= a, wide < low
    # in this order a NaN stays one
    return torch.where(above, a, torch.where(below, low, wide)), above, below


def _pact(x: Tensor, a: Tensor, step: Tensor, stairs: Stairs, needs: int) -> tuple[Tensor, ...]:
    clipped, above, below = _clipped(x, a, stairs)
    codes = lsq_codes(clipped / step, stairs)
    y = (codes * step).to(x.dtype)
    if not needs:
        return (y,)
    inside = codes - (stairs.low - 1) if fits(stairs) else torch.ones_like(codes)
    index = torch.where(below, 0.0, inside)
    index = torch.where(above, float(stairs.count + 1 if fits(stairs) else 2), index)
    code = ((codes - stairs.low).to(torch.uint8),) if needs > 1 else ()
    return y, index.to(torch.uint8), *code


def _pact_slopes(
    grad: Tensor,
    x: Tensor,
    a: Tensor,
    stairs: Stairs,
    derivative: Derivative,
    sharpness: Sharpness | None,
) -> tuple[Tensor, Tensor]:
    """Gradient in x, and that in a before it is summed."""
    clipped, above, below = _clipped(x, a, stairs)
    z = clipped / (a / stairs.high)
    slope = coarse_slope(z, derivative, stairs=stairs, sharpness=sharpness)
    slope = torch.where(above | below, torch.zeros_like(slope), slope)
    in_clip = above.to(a.dtype) - below.to(a.dtype) if stairs.low else above.to(a.dtype)
    return grad * slope.to(grad.dtype), grad.to(a.dtype) * in_clip


@functools.cache
def _pact_forward(stairs: Stairs, needs: int) -> Fused:
    return Fused(lambda x, *, a, step: _pact(x, a, step, stairs, needs))


@functools.cache
def _pact_backward(stairs: Stairs, derivative: Derivative) -> Fused:
    def kernel(
        x: Tensor, grad: Tensor, *, a: Tensor, sharpness: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        grad_x, per_element = _pact_slopes(grad, x, a, stairs, derivative, sharpness)
        return grad_x, per_element.sum()

    return Fused(kernel)
