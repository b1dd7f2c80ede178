"""Sign and rounding with a chosen coarse derivative: for sign activations and in-graph weights."""

from typing import Any

import torch
from torch import Tensor

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
    result: Tensor = RoundSte.apply(x, sharpness, None, derivative)
    return result


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


class RoundSte(torch.autograd.Function):
    """`round_ste`, and `sign_ste` where there are no stairs."""

    generate_vmap_rule = True

    @staticmethod
    def forward(  # noqa: D102
        x: Tensor, sharpness: Sharpness | None, stairs: Stairs | None, derivative: Derivative
    ) -> Tensor:
        if stairs is None:
            # a NaN passes the clamp, and must: the loss shows it and the run is stopped there
            return torch.where(x < 0, -1.0, x.clamp(1, 1))
        codes = (x - stairs.shift).ceil_().clamp_(stairs.low, stairs.high)
        return codes.add_(0.0)  # -0.0 to 0.0, as codes decode

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: D102
        x, sharpness, ctx.stairs, ctx.derivative = inputs
        ctx.sharpness = None if isinstance(sharpness, Tensor) else sharpness
        moving = (sharpness,) if isinstance(sharpness, Tensor) else ()
        ctx.save_for_backward(*(() if ctx.derivative == "identity" else (x, *moving)))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        if not ctx.needs_input_grad[0] or ctx.derivative == "identity":
            return grad, None, None, None
        # looked at once: under activation checkpointing a second look is refused
        x, *moving = ctx.saved_tensors
        sharpness = moving[0] if moving else ctx.sharpness
        x = x if x.dtype == torch.float64 else x.float()
        if ctx.stairs is None:
            slope = sign_slope(x, ctx.derivative, sharpness=sharpness)
        else:
            slope = coarse_slope(x, ctx.derivative, stairs=ctx.stairs, sharpness=sharpness)
        # not in place: under vmap the gradients of a weight are batched and its slopes are not
        return grad * slope.to(grad.dtype), None, None, None
