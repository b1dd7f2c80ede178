"""Products of coded activations with coded weights: convolutions and linear layers.

Forward: the sum of the products of codes, exact in integers, times both scales. Backward: the float
operators' own, or with gradients in bfloat16, in which the codes of both are exact.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from qat.errors import SpecError
from qat.functional.int8 import Conv, IntMm, Linear, Product, reason_against
from qat.functional.kernels import apply, is_plain
from qat.functional.levels import Levels
from qat.functional.runtime import runtime
from qat.functional.weight_codes import LARGEST, WeightCodes, codes_of

# index and levels of a tensor that knows its codes
Known = tuple[Tensor, Levels]

_INT32 = 2**31 - 1
_HALF = torch.bfloat16
# of inputs to one weight for which its codes stay packed
_SHAPES = 8


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
    """

    product: Conv | Linear
    levels: Levels
    weight: WeightCodes
    dtype: torch.dtype
    operator: Product | None

    def forward(self, x: Tensor, w: Tensor, bias: Tensor | None, index: Tensor) -> Tensor:
        """The product."""
        if self.operator is None:
            return _of_floats(self.product, x, w, bias)
        codes = self.levels.operand(index)
        scale = self.weight.scale * self.levels.step
        packed = self._packed(self.operator, scale, codes.shape)
        zero_point = self.levels.zero_point
        assert zero_point is not None
        bias = None if bias is None else bias.float()
        y = self.operator(codes, zero_point, packed, scale, bias, self.dtype)
        if isinstance(self.product, Linear) or _answers_in_channels_last(x, w):
            return y
        return y.contiguous()  # in the layout of a float convolution's result

    def _packed(self, operator: Product, scale: Tensor, shape: torch.Size) -> Tensor:
        key = (operator, shape)
        if key not in self.weight.packed:
            if len(self.weight.packed) == _SHAPES:
                self.weight.packed.clear()
            self.weight.packed[key] = operator.packed(self.weight.codes, scale, shape)
        return self.weight.packed[key]


def product(
    function: Callable[..., Any], args: Any, kwargs: Any, known: Callable[[Tensor], Known | None]
) -> Any:
    """`function` as a product of codes; NotImplemented where it is none.

    Args:
        function: F.conv2d or F.linear.
        args: of the function.
        kwargs: of the function.
        known: index and levels of a tensor that knows its codes.
    """
    options = runtime()
    in_bf16 = options.backward == "bf16" and torch.is_grad_enabled()
    if options.integer_forward == "off" and not in_bf16:
        return NotImplemented
    given = _GIVEN[function](*args, **kwargs)
    operator = _operator(given) if given else None
    if given is None or not (operator or in_bf16):
        return NotImplemented
    x, w, dtype = given.x, given.w, _dtype(given)
    found = known(x)
    if dtype is None or found is None or found[1].zero_point is None or not x.numel():
        return NotImplemented
    if w[0].numel() * 255 * LARGEST > _INT32 or (weight := _weight_codes(w, known)) is None:
        return NotImplemented
    index, levels = found
    plan = _Plan(given.product, levels, weight, dtype, operator)
    if not torch.is_grad_enabled():
        return plan.forward(x, w, given.bias, index)
    return apply(Bf16Product if in_bf16 else CodedProduct, x, w, given.bias, index, plan)


def is_product(function: Callable[..., Any]) -> bool:
    """Whether it may be a product of codes."""
    return function in _GIVEN


def _operator(given: _Given) -> Product | None:
    """The int8 operator for a product; None where there is none."""
    asked, device = runtime().integer_forward, given.x.device.type
    if asked == "off":
        return None
    if device == "cpu":
        is_taken = asked == "on" or pays(given.product, given.x, given.w)
        return given.product if is_taken and not reason_against() else None
    if device != "cuda" or not isinstance(given.product, Linear) or reason_against(device):
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
        index, levels = found
        codes = levels.signed(index)
        return None if codes is None else WeightCodes(codes, levels.step.reshape(1).float())
    # while it trains, whoever puts codes into a weight says so
    return codes_of(w, search=not torch.is_grad_enabled()) if is_plain(w) else None


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
        x, w = ctx.saved_tensors
        in_x, in_w = _gradients(ctx.product, grad, x, w.to(x.dtype), wants)
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


def pays(product: Conv | Linear, x: Tensor, w: Tensor) -> bool:
    """Whether an integer sum on a CPU takes less time than one of floats, by the shapes alone.

    Per output value, in ns: a float sum of n terms takes some .007 n more than one of integers;
    writing it in float32 takes .3 more, in another layout than the operator's own .9. In training
    each weight is turned into packed codes at each step, 1.4, for all of the positions at which it
    is used.

    Under autocast it does not: bfloat16 products are as fast. Measured on an Intel Xeon with AMX,
    two threads.
    """
    if torch.is_autocast_enabled("cpu"):
        return False
    terms, positions = w[0].numel(), _positions(product, x, w)
    turned = isinstance(product, Conv) and not _answers_in_channels_last(x, w)
    packing = 1.4 * terms / positions if torch.is_grad_enabled() else 0.0
    return 0.007 * terms > packing + (0.9 if turned else 0.3)


def _positions(product: Conv | Linear, x: Tensor, w: Tensor) -> int:
    """At how many places of the input each weight is multiplied."""
    if isinstance(product, Linear):
        return x.numel() // x.shape[-1]
    places = len(x)
    for axis in (0, 1):
        reach = product.dilation[axis] * (w.shape[2 + axis] - 1) + 1
        room = x.shape[2 + axis] + 2 * product.padding[axis] - reach
        places *= room // product.stride[axis] + 1
    return max(1, places)


def _answers_in_channels_last(x: Tensor, w: Tensor) -> bool:
    """Whether a convolution's result lies in channels_last memory, as the operator gives it."""
    is_asked = runtime().memory_format == "channels_last"
    return is_asked or _is_channels_last(x) or _is_channels_last(w)


def _is_channels_last(x: Tensor) -> bool:
    """Whether x makes a float convolution answer in channels_last; one that is both does not."""
    return not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
