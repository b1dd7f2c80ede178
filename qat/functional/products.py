"""Products of coded activations with coded weights: convolutions and linear layers.

Forward: the sum of the products of codes, exact in integers, times both scales. Backward: the float
operators' own, or with gradients in bfloat16, in which the codes of both are exact.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F

from qat.errors import SpecError
from qat.functional.int8 import Conv, IntMm, Linear, Product, reason_against
from qat.functional.integer_rule import answers_in_channels_last, is_faster_in_int8, positions
from qat.functional.kernels import apply, is_plain
from qat.functional.levels import Levels
from qat.functional.runtime import runtime
from qat.functional.weight_codes import LARGEST, WeightCodes, codes_of

_INT32 = 2**31 - 1
_HALF = torch.bfloat16
# of inputs to one weight for which its codes stay packed
_SHAPES = 8


@dataclass(frozen=True, slots=True)
class Known:
    """What a tensor knows of its codes.

    Attributes:
        index: uint8 of its levels.
        levels: what the index stands for.
        total: 0-dim sum of its values, or None.
    """

    index: Tensor
    levels: Levels
    total: Tensor | None


@dataclass(frozen=True, slots=True)
class _Given:
    """The arguments of a product, however they were given."""

    x: Tensor
    w: Tensor
    bias: Tensor | None
    product: Conv | Linear


def _conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> _Given | None:
    if isinstance(padding, str) or input.ndim != 4:
        return None
    geometry = (_pair(stride), _pair(padding), _pair(dilation))
    return _Given(input, weight, bias, Conv(*geometry, groups))


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> _Given | None:
    return _Given(input, weight, bias, Linear()) if input.ndim >= 2 == weight.ndim else None


def _pair(value: Any) -> tuple[int, int]:
    if isinstance(value, Sequence):
        return (value[0], value[-1])
    return (value, value)


# what F.conv2d and F.linear are to `__torch_function__`
_GIVEN: dict[Callable[..., Any], Callable[..., _Given | None]] = {
    F.conv2d: _conv2d,
    F.linear: _linear,
}


@dataclass(frozen=True, slots=True)
class _Plan:
    """A product of codes.

    Attributes:
        product: what is multiplied, and how it is laid out.
        levels: what the input's index stands for.
        weight: codes of the weight.
        dtype: of the result.
        operator: that forward is computed by; None for that of floats.
        total: 0-dim sum of the input, or None.
    """

    product: Conv | Linear
    levels: Levels
    weight: WeightCodes
    dtype: torch.dtype
    operator: Product | None
    total: Tensor | None

    def forward(self, x: Tensor, w: Tensor, bias: Tensor | None, index: Tensor) -> Tensor:
        """The product."""
        if self.operator is None:
            return _of_floats(self.product, x, w, bias)
        codes = self.levels.operand(index)
        # bytes know no NaN, which must reach the loss: one in an operand makes the whole result NaN
        taint = ((x.sum() if self.total is None else self.total) + w.sum()) * 0
        scale = self.weight.scale * self.levels.step + taint
        packed = self._packed(self.operator, scale, codes.shape)
        zero_point = self.levels.zero_point
        assert zero_point is not None
        bias = None if bias is None else bias.float()
        y = self.operator(codes, zero_point, packed, scale, bias, self.dtype)
        if isinstance(self.product, Linear) or answers_in_channels_last(x, w):
            return y
        return y.contiguous()  # in the layout of a float convolution's result

    def _packed(self, operator: Product, scale: Tensor, shape: torch.Size) -> Tensor:
        key, known = (operator, shape), self.weight.packed
        packed = known.get(key)
        if packed is None:
            if len(known) >= _SHAPES:
                known.clear()
            packed = known[key] = operator.packed(self.weight.codes, scale, shape)
        return packed


def product(
    function: Callable[..., Any], args: Any, kwargs: Any, known: Callable[[Tensor], Known | None]
) -> Any:
    """`function` as a product of codes; NotImplemented where it is none.

    Args:
        function: F.conv2d or F.linear.
        args: of the function.
        kwargs: of the function.
        known: what a tensor knows of its codes, None if it knows none.
    """
    options = runtime()
    in_bf16 = options.backward == "bf16" and torch.is_grad_enabled()
    if options.integer_forward == "off" and not in_bf16:
        return NotImplemented
    given = _GIVEN[function](*args, **kwargs)
    if given is None or not _is_sound(given) or forward_ad._current_level >= 0:
        return NotImplemented  # what is wrong with it, torch's own function says
    x, w, dtype, operator = given.x, given.w, _dtype(given), _operator(given)
    found = known(x)
    if dtype is None or found is None or not (operator or in_bf16):
        return NotImplemented
    if found.levels.zero_point is None:
        return NotImplemented
    if w[0].numel() * 255 * LARGEST > _INT32 or (weight := _weight_codes(w, known)) is None:
        return NotImplemented
    index = found.index
    plan = _Plan(given.product, found.levels, weight, dtype, operator, found.total)
    if not torch.is_grad_enabled():
        return plan.forward(x, w, given.bias, index)
    return apply(Bf16Product if in_bf16 else CodedProduct, x, w, given.bias, index, plan)


def is_product(function: Callable[..., Any]) -> bool:
    """Whether it may be a product of codes."""
    return function in _GIVEN


def _is_sound(given: _Given) -> bool:
    """Whether shapes go together, and none is empty."""
    x, w, bias, product = given.x, given.w, given.bias, given.product
    if w.ndim != (4 if isinstance(product, Conv) else 2) or not x.numel() or not w.numel():
        return False
    if bias is not None and (not is_plain(bias) or bias.shape != w.shape[:1]):
        return False
    if isinstance(product, Linear):
        return x.shape[-1] == w.shape[1]
    is_divided = len(w) % product.groups == 0 and x.shape[1] == w.shape[1] * product.groups
    return is_divided and min(product.padding) >= 0 and positions(product, x, w) > 0


def _operator(given: _Given) -> Product | None:
    """The int8 operator for a product; None where there is none, or it is asked for none."""
    asked, device = runtime().integer_forward, given.x.device.type
    if (
        asked == "off"
        or (asked == "auto" and not is_faster_in_int8(given.product, given.x, given.w))
        or reason_against(device)
    ):
        return None
    if device == "cpu":
        return given.product
    if not isinstance(given.product, Linear):
        return None
    outputs, inputs = given.w.shape
    return IntMm() if IntMm.takes(given.x.numel() // inputs, inputs, outputs) else None


def _dtype(given: _Given) -> torch.dtype | None:
    """The dtype of the result; None where there is no operator for it."""
    device = given.x.device.type
    if device != given.w.device.type or given.w.dtype != torch.float32:
        return None
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        return dtype if dtype == torch.bfloat16 else None
    return torch.float32 if given.x.dtype == torch.float32 else None


def _weight_codes(w: Tensor, known: Callable[[Tensor], Known | None]) -> WeightCodes | None:
    if (found := known(w)) is not None:
        codes = found.levels.signed(found.index)
        return None if codes is None else WeightCodes(codes, found.levels.step.reshape(1).float())
    if not is_plain(w) or w.is_inference():  # whose values change without a version
        return None
    # while it trains, whoever puts codes into a weight says so; one made anew is not worth a search
    is_searched = not torch.is_grad_enabled() and isinstance(w, nn.Parameter)
    return codes_of(w, search=is_searched)


class CodedProduct(torch.autograd.Function):
    """A product of codes by a `_Plan`, with the gradients of the float product."""

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any, x: Tensor, w: Tensor, bias: Tensor | None, index: Tensor, plan: _Plan
    ) -> Tensor:
        ctx.product = plan.product
        ctx.save_for_backward(x, w)  # x as its codes, by the hooks around
        return plan.forward(x, w, bias, index)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        (grad,), wants = grads, ctx.needs_input_grad
        x, w = (saved.to(grad.dtype) for saved in ctx.saved_tensors)  # as autocast has them
        in_x, in_w = _gradients(ctx.product, grad, x, w, wants)
        return in_x, in_w, _in_bias(ctx.product, grad) if wants[2] else None, None, None


class Bf16Product(torch.autograd.Function):
    """A product of codes by a `_Plan`, whose gradients are rounded to bfloat16.

    Both operands are codes, which its eight bits hold; scales are applied in float32.
    """

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any, x: Tensor, w: Tensor, bias: Tensor | None, index: Tensor, plan: _Plan
    ) -> Tensor:
        ctx.plan, ctx.input_dtype = plan, x.dtype
        ctx.save_for_backward(index)
        return plan.forward(x, w, bias, index)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        (grad,), wants, plan = grads, ctx.needs_input_grad, ctx.plan
        if torch.is_grad_enabled():
            raise SpecError(
                "runtime.backward=bf16 has no second derivatives; use runtime.backward=float32"
            )
        in_bias = _in_bias(plan.product, grad.float()) if wants[2] else None
        codes, scale, step = plan.weight.codes.to(_HALF), plan.weight.scale, plan.levels.step
        x = plan.levels.codes(*ctx.saved_tensors, _HALF)
        if len(scale) == 1:
            in_x, in_w = _gradients(plan.product, grad.to(_HALF), x, codes, wants)
            in_x = None if in_x is None else in_x.to(ctx.input_dtype).mul_(scale)
            return in_x, None if in_w is None else in_w.float().mul_(step), in_bias, None, None
        # a channel's scale goes into what comes from above, ahead of the sum over channels
        is_zero = scale == 0
        scale = scale.masked_fill(is_zero, 1).view(-1, *(1,) * (codes.ndim - 1))
        codes = codes * ~is_zero.view(scale.shape)
        of_channels = scale[..., 0] if isinstance(plan.product, Conv) else scale[:, 0]
        in_x, in_w = _gradients(plan.product, (grad * of_channels).to(_HALF), x, codes, wants)
        in_x = None if in_x is None else in_x.to(ctx.input_dtype)
        in_w = None if in_w is None else in_w.float().mul_(step / scale)
        return in_x, in_w, in_bias, None, None


def _of_floats(product: Conv | Linear, x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
    if isinstance(product, Linear):
        return F.linear(x, w, bias)
    return F.conv2d(x, w, bias, product.stride, product.padding, product.dilation, product.groups)


def _gradients(
    product: Conv | Linear, grad: Tensor, x: Tensor, w: Tensor, wants: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients in x and w, as torch's own operators compute them."""
    if isinstance(product, Linear):
        rows = grad.reshape(-1, grad.shape[-1])
        in_x = (rows @ w).view(x.shape) if wants[0] else None
        in_w = rows.t() @ x.reshape(-1, x.shape[-1]) if wants[1] else None
        return in_x, in_w
    in_x, in_w, _ = torch.ops.aten.convolution_backward(
        grad, x, w, None, product.stride, product.padding, product.dilation, False, [0, 0],
        product.groups, [wants[0], wants[1], False],
    )  # fmt: skip
    return in_x, in_w


def _in_bias(product: Conv | Linear, grad: Tensor) -> Tensor:
    """Gradient in the bias: the sum over all axes but the channels."""
    is_linear = isinstance(product, Linear)
    return grad.sum(tuple(range(grad.ndim - 1)) if is_linear else (0, 2, 3))
