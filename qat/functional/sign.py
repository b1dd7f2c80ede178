"""Sign and rounding with a chosen coarse derivative: for sign activations and in-graph weights."""

import functools
from typing import Any

import torch
from torch import Tensor

from qat.functional.coded import coded, keeps_codes, uncoded
from qat.functional.intervals import BY_INDEX, Slopes, gradients
from qat.functional.kernels import Fused, apply, as_number, fuses, wide
from qat.functional.levels import Levels
from qat.functional.stairs import Stairs
from qat.functional.ste import Sharpness, coarse_slope, estimator, sign_slope
from qat.names import Derivative


def sign_ste(
    x: Tensor, derivative: Derivative = "clipped_relu", *, sharpness: Sharpness | None = None
) -> Tensor:
    """Sign with values -1 and 1, and a coarse derivative.

        y = 1 if x >= 0 else -1

    Derivative: any member of the family, `qat.functional.ste.sign_slope`; clipped_relu is
    1 on -1 < x <= 1, the clipped identity of the binary-network literature.

    Args:
        x: any shape, floating point; NaN stays NaN.
        derivative: coarse derivative.
        sharpness: 0-dim parameter of a scheduled derivative; None takes its start.

    Raises:
        SpecError: no such derivative.

    Returns:
        Tensor of x's shape and dtype.

    Source: arXiv:1602.02830 (clipped identity); the others in `qat.functional.ste`.

    >>> x = torch.tensor([-0.25, 0.0, 2.0], requires_grad=True)
    >>> y = sign_ste(x, "piecewise_quadratic")
    >>> y.tolist(), torch.autograd.grad(y.sum(), x)[0].tolist()
    ([-1.0, 1.0, 1.0], [1.5, 2.0, 0.0])
    """
    estimator(derivative)  # a wrong name is answered here and not in backward
    if not torch.is_grad_enabled():
        derivative = "identity"  # evaluation needs no index for a backward pass
    x = uncoded(x)
    keeps = keeps_codes(x)
    y: Tensor
    y, *kept = apply(SignSte, x, sharpness, derivative, keeps)
    if not keeps:
        return y
    one = torch.ones((), dtype=x.dtype, device=x.device)
    offset = -3 if derivative in _INDEXED else -1
    return coded(y, kept[0], Levels(one, offset, low=-1, high=1, stride=2))


def round_ste(
    z: Tensor,
    stairs: Stairs,
    derivative: Derivative = "identity",
    *,
    sharpness: Sharpness | None = None,
) -> Tensor:
    """Codes of positions z with a coarse derivative.

        code = clip(ceil(z - shift), low, high)       (shift 1/2: the nearest, halves down)

    Args:
        z: positions in steps, any shape, floating point.
        stairs: the codes.
        derivative: coarse derivative in z, see `qat.functional.ste.coarse_slope`.
        sharpness: 0-dim parameter of a scheduled derivative; None takes its start.

    Raises:
        SpecError: no such derivative.

    Returns:
        Codes as floats, of z's shape and dtype.
    """
    estimator(derivative)
    result: Tensor = RoundSte.apply(z, sharpness, stairs, derivative)
    return result


# index of an input: 0 below -1, 1 below 0, 2 up to 1, 3 above; the sign's two intervals are 1 and 2
_INTERVALS = Stairs(low=-1, high=0, first=-1, shift=0.0)
_INDEXED: tuple[Derivative, ...] = ("relu", "clipped_relu")


class SignSte(torch.autograd.Function):
    """`sign_ste` as a Function; outputs y, then an index without grad where one is needed.

    For relu and clipped_relu the index of the interval; else, for tensors that know their codes,
    0 or 1 for the sign alone.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(  # noqa: D102
        x: Tensor, sharpness: Sharpness | None, derivative: Derivative, keeps_codes: bool
    ) -> tuple[Tensor, ...]:
        if fuses(x):
            parts: tuple[Tensor, ...] = _kernels(derivative in _INDEXED, keeps_codes).over(x)
            return parts
        # a NaN passes the clamp, and must: the loss shows it and the run is stopped there
        y = torch.where(x < 0, -1.0, x.clamp(1, 1))
        if derivative in _INDEXED:
            u = (x.to(wide(x.dtype)) + 1) / 2
            index = _byte(u > 0) + _byte(x >= 0) + _byte(u > 1)
        elif keeps_codes:
            index = _byte(x >= 0)
        else:
            return (y,)
        return y, index

    @staticmethod
    def setup_context(  # noqa: D102
        ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]
    ) -> None:
        x, sharpness, ctx.derivative, _ = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)  # no zeros for the index
        ctx.sharpness = None if isinstance(sharpness, Tensor) else sharpness
        if ctx.derivative == "identity":
            ctx.save_for_backward()
        elif ctx.derivative in _INDEXED:
            ctx.save_for_backward(output[1])
        else:
            ctx.save_for_backward(x, *((sharpness,) if isinstance(sharpness, Tensor) else ()))

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:  # noqa: D102
        if grad is None or not ctx.needs_input_grad[0] or ctx.derivative == "identity":
            return grad, None, None, None
        # looked at once: under activation checkpointing a second look is refused
        saved = ctx.saved_tensors
        if ctx.derivative in _INDEXED:
            slopes = Slopes(BY_INDEX[ctx.derivative])
            return gradients(grad, saved, _INTERVALS, slopes, (True, False))[0], None, None, None
        x, *moving = saved
        sharpness = moving[0] if moving else ctx.sharpness
        if fuses(x):
            kernel = _slope_kernel(ctx.derivative)
            return kernel.over(x, grad, sharpness=as_number(sharpness)), None, None, None
        slope = sign_slope(x.to(wide(x.dtype)), ctx.derivative, sharpness=sharpness)
        # not in place: under vmap the gradients of a weight are batched and its slopes are not
        return grad * slope.to(grad.dtype), None, None, None


class RoundSte(torch.autograd.Function):
    """`round_ste` as a Function."""

    generate_vmap_rule = True

    @staticmethod
    def forward(  # noqa: D102
        z: Tensor, sharpness: Sharpness | None, stairs: Stairs, derivative: Derivative
    ) -> Tensor:
        codes = (z - stairs.shift).ceil_().clamp_(stairs.low, stairs.high)
        return codes.add_(0.0)  # -0.0 to 0.0, as codes decode

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: D102
        z, sharpness, ctx.stairs, ctx.derivative = inputs
        ctx.sharpness = None if isinstance(sharpness, Tensor) else sharpness
        moving = (sharpness,) if isinstance(sharpness, Tensor) else ()
        ctx.save_for_backward(*(() if ctx.derivative == "identity" else (z, *moving)))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        if not ctx.needs_input_grad[0] or ctx.derivative == "identity":
            return grad, None, None, None
        z, *moving = ctx.saved_tensors
        sharpness = moving[0] if moving else ctx.sharpness
        slope = coarse_slope(
            z.to(wide(z.dtype)), ctx.derivative, stairs=ctx.stairs, sharpness=sharpness
        )
        return grad * slope.to(grad.dtype), None, None, None


def _byte(mask: Tensor) -> Tensor:
    """A bool's byte; seen, not converted, where nothing is compiled."""
    return mask.to(torch.uint8) if torch.compiler.is_compiling() else mask.view(torch.uint8)


@functools.cache
def _kernels(is_indexed: bool, keeps_codes: bool) -> Fused:
    """Kernel of the sign with the index that is needed."""

    def kernel(x: Tensor) -> tuple[Tensor, ...]:
        y = torch.where(x < 0, -1.0, x.clamp(1, 1))
        if is_indexed:
            u = (x.to(wide(x.dtype)) + 1) / 2
            one, zero = torch.ones_like(u), torch.zeros_like(u)
            index = torch.where(u > 0, one, zero) + torch.where(x < 0, zero, one)
            return y, (index + torch.where(u > 1, one, zero)).to(torch.uint8)
        if keeps_codes:
            return y, ((y + 1) / 2).to(torch.uint8)
        return (y,)

    return Fused(kernel)


@functools.cache
def _slope_kernel(derivative: Derivative) -> Fused:
    """Kernel of the gradient of a member that looks at x itself."""

    def kernel(x: Tensor, grad: Tensor, *, sharpness: Tensor | None = None) -> Tensor:
        slope = sign_slope(x.to(wide(x.dtype)), derivative, sharpness=sharpness)
        return grad * slope.to(grad.dtype)

    return Fused(kernel)
