"""Learned step size (LSQ): nearest levels, with a true gradient in the range and in the step.

The rounding has a coarse derivative, the identity unless chosen otherwise.
"""

import functools
from typing import Any

import torch
from torch import Tensor

from qat.functional.coded import coded, keeps_codes, uncoded
from qat.functional.intervals import as_bytes
from qat.functional.kernels import Fused, apply, as_number, dense, fuses, laid_out_as, wide
from qat.functional.levels import Levels
from qat.functional.sign import round_ste
from qat.functional.stairs import Stairs
from qat.functional.ste import Sharpness, coarse_slope, estimator
from qat.names import Derivative


def lsq_ste(
    x: Tensor,
    scale: Tensor,
    *,
    stairs: Stairs,
    derivative: Derivative = "identity",
    sharpness: Sharpness | None = None,
) -> Tensor:
    """Levels of a learned step size.

        y = s round(clip(v, low, high)),   v = x / s

    Gradients, with m the slope of the rounding's coarse derivative, 1 for the identity:

        d y / d x = m [low <= v <= high]
        d y / d s = round(clip(v)) - v d y / d x

    Args:
        x: any shape, floating point.
        scale: s > 0, 0-dim, or (O, 1, ..., 1) for a weight's output channels.
        stairs: the codes; halves round down.
        derivative: coarse derivative of the rounding.
        sharpness: 0-dim parameter of a scheduled derivative; None takes its start.

    Raises:
        SpecError: no such derivative.

    Returns:
        Tensor of x's shape and dtype; the arithmetic is float32 at least.

    Source: arXiv:1902.08153.

    >>> x = torch.tensor([-1.0, 0.4, 9.0], requires_grad=True)
    >>> two_bits = Stairs(low=0, high=3, first=0, shift=0.5)
    >>> y = lsq_ste(x, torch.tensor(0.5), stairs=two_bits)
    >>> y.tolist(), torch.autograd.grad(y.sum(), x)[0].tolist()
    ([0.0, 0.5, 1.5], [0.0, 1.0, 0.0])
    """
    estimator(derivative)
    x = uncoded(x)
    keeps = keeps_codes(x) and scale.numel() == 1
    y: Tensor
    y, *index = apply(LsqSte, x, scale, sharpness, stairs, derivative, keeps)
    if not keeps:
        return y
    # of its own, as whoever owns the scale may change it before backward
    step = scale.detach().to(wide(x.dtype)).reshape(()).clone()
    return coded(y, index[0], Levels(step, stairs.low, stairs.low, stairs.high))


class LsqSte(torch.autograd.Function):
    """`lsq_ste` as a Function; outputs y, then the codes minus `low` as uint8 if they are kept."""

    generate_vmap_rule = True

    @staticmethod
    def forward(  # noqa: D102
        x: Tensor,
        scale: Tensor,
        sharpness: Sharpness | None,
        stairs: Stairs,
        derivative: Derivative,
        keeps_codes: bool,
    ) -> tuple[Tensor, ...]:
        s = scale.detach().to(wide(x.dtype))
        if fuses(x):
            x = _rows_first(x)
            flat = _lsq_forward(stairs, keeps_codes)(_rows(x, s), s.view(-1, 1))
            return tuple(part.as_strided_(x.shape, x.stride()) for part in flat)
        codes = lsq_codes(x.to(s.dtype) / s, stairs)
        index = (as_bytes(codes, stairs.low, stairs.high),) if keeps_codes else ()
        return ((codes * s).to(x.dtype), *index)

    @staticmethod
    def setup_context(  # noqa: D102
        ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]
    ) -> None:
        x, scale, sharpness, ctx.stairs, ctx.derivative, _ = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)  # no zeros for the index
        ctx.sharpness = None if isinstance(sharpness, Tensor) else sharpness
        moving = (sharpness,) if isinstance(sharpness, Tensor) else ()
        ctx.save_for_backward(x, scale, *moving)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:  # noqa: D102
        if grad is None:
            return (None,) * 6
        # looked at once: under activation checkpointing a second look is refused
        x, scale, *moving = ctx.saved_tensors
        sharpness = moving[0] if moving else ctx.sharpness
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return *_lsq_twice(grad, x, scale, ctx.stairs, ctx.derivative, sharpness), *[None] * 4
        s = scale.detach().to(wide(x.dtype))
        if fuses(x):
            x = _rows_first(x)
            at = {} if sharpness is None else {"sharpness": as_number(sharpness)}
            kernel = _lsq_backward(ctx.stairs, ctx.derivative)
            grad = laid_out_as(grad, x)
            flat, in_scale = kernel(_rows(grad, s), _rows(x, s), s.view(-1, 1), **at)
            grad_x = flat.as_strided_(x.shape, x.stride())
            grad_scale = in_scale.view(s.shape)
        else:
            grad_x, per_element = _lsq_slopes(grad, x, s, ctx.stairs, ctx.derivative, sharpness)
            grad_scale = per_element.sum_to_size(s.shape)
        return grad_x, grad_scale.to(scale.dtype), None, None, None, None


def lsq_codes(v: Tensor, stairs: Stairs) -> Tensor:
    """Nearest codes of positions v in steps, as floats."""
    v = v.clamp(stairs.low, stairs.high)
    codes = (v - stairs.shift).ceil().clamp(stairs.low, stairs.high)
    return codes + 0.0  # -0.0 to 0.0, as codes decode


def _lsq_slopes(
    grad: Tensor,
    x: Tensor,
    s: Tensor,
    stairs: Stairs,
    derivative: Derivative,
    sharpness: Sharpness | None,
) -> tuple[Tensor, Tensor]:
    """Gradient in x, and that in s before it is summed."""
    v = x.to(s.dtype) / s
    clipped = v.clamp(stairs.low, stairs.high)
    slope = (v == clipped).to(s.dtype)
    if derivative != "identity":
        slope = slope * coarse_slope(clipped, derivative, stairs=stairs, sharpness=sharpness)
    in_scale = grad.to(s.dtype) * (lsq_codes(v, stairs) - slope * clipped)
    return grad * slope.to(grad.dtype), in_scale


def _lsq_twice(
    grad: Tensor,
    x: Tensor,
    scale: Tensor,
    stairs: Stairs,
    derivative: Derivative,
    sharpness: Sharpness | None,
) -> tuple[Tensor | None, ...]:
    """Gradients in x and s with a graph of their own, for derivatives of derivatives."""
    s = scale.to(wide(x.dtype))
    v = (x.to(s.dtype) / s).clamp(stairs.low, stairs.high)
    y = (round_ste(v, stairs, derivative, sharpness=sharpness) * s).to(x.dtype)
    wanted = [t for t in (x, scale) if t.requires_grad]
    found = iter(torch.autograd.grad(y, wanted, grad, create_graph=True))
    return tuple(next(found) if t.requires_grad else None for t in (x, scale))


@functools.cache
def _lsq_forward(stairs: Stairs, keeps_codes: bool) -> Fused:
    def kernel(x: Tensor, s: Tensor) -> tuple[Tensor, ...]:
        codes = lsq_codes(x.to(s.dtype) / s, stairs)
        index = ((codes - stairs.low).to(torch.uint8),) if keeps_codes else ()
        return ((codes * s).to(x.dtype), *index)

    return Fused(kernel)


@functools.cache
def _lsq_backward(stairs: Stairs, derivative: Derivative) -> Fused:
    def kernel(
        grad: Tensor, x: Tensor, s: Tensor, *, sharpness: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        grad_x, per_element = _lsq_slopes(grad, x, s, stairs, derivative, sharpness)
        return grad_x, per_element.sum(1)

    return Fused(kernel)


def _rows_first(x: Tensor) -> Tensor:
    """X with dense memory in which the first axis is outermost, as scales of channels want it."""
    x = dense(x)
    return x if not x.ndim or x.stride(0) * len(x) == x.numel() else x.contiguous()


def _rows(x: Tensor, s: Tensor) -> Tensor:
    """Memory of x as (scales, elements of each)."""
    each = x.numel() // s.numel()
    return x.as_strided((s.numel(), each), (each, 1))
