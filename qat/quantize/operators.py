"""Operators of PyTorch (aten), by what they do to values: products, views, averages, ranges."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from torch import Tensor

# what they give holds values of what `kept` names, and nothing else
KEEPING = frozenset(
    {
        *("view", "_unsafe_view", "view_copy", "reshape", "permute", "transpose", "t"),
        *("numpy_T", "expand", "squeeze", "unsqueeze", "slice", "select", "split"),
        *("split_with_sizes", "unbind", "diagonal", "as_strided", "alias", "detach"),
        *("as_strided_", "squeeze_", "unsqueeze_", "transpose_", "t_", "detach_"),
        *("unfold", "clone", "_to_copy", "lift_fresh", "lift_fresh_copy", "index_select"),
        *("index", "gather", "take_along_dim", "take", "roll", "flip", "repeat"),
        *("repeat_interleave", "cat", "stack", "max_pool2d_with_indices"),
        *("max_pool3d_with_indices", "amax", "max", "adaptive_max_pool2d"),
        *("adaptive_max_pool3d", "im2col", "pixel_shuffle", "pixel_unshuffle"),
        *("channel_shuffle", "native_channel_shuffle", "upsample_nearest1d"),
        *("upsample_nearest2d", "upsample_nearest3d", "_upsample_nearest_exact2d"),
        *("constant_pad_nd", "reflection_pad1d", "reflection_pad2d", "reflection_pad3d"),
        *("replication_pad1d", "replication_pad2d", "replication_pad3d", "where", "copy"),
        *("copy_", "contiguous", "_conj", "resolve_conj", "_reshape_alias"),
        *("native_dropout", "topk", "sort", "masked_fill"),
    }
)
AVERAGING = frozenset(
    {
        *("mean", "avg_pool1d", "avg_pool2d", "avg_pool3d", "_adaptive_avg_pool2d"),
        *("_adaptive_avg_pool3d", "adaptive_avg_pool1d"),
    }
)
# products entry by entry, whose constant factor may be a mask
MASKING = frozenset({"mul", "mul_"})
# nothing but memory to write to, or zeros
BLANK = frozenset(
    {
        *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"),
        *("zeros", "zeros_like", "new_zeros"),
    }
)
# never negative, whatever enters
_NON_NEGATIVE = frozenset(
    {
        *("relu", "relu_", "sigmoid", "sigmoid_", "_softmax", "_safe_softmax"),
        *("hardsigmoid", "hardsigmoid_", "abs", "abs_", "square", "exp", "exp_"),
        *("softplus", "norm", "linalg_vector_norm"),
    }
)
# never negative if nothing that enters is
_RISING = frozenset(
    {
        *("add", "add_", "mul", "mul_", "div", "div_", "sum", "sqrt", "rsqrt", "cumsum"),
        *("upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d"),
        *("_upsample_bilinear2d_aa", "silu", "silu_", "gelu", "hardswish", "hardswish_"),
        *("tanh", "elu", "maximum", "minimum", "pow", "threshold"),
    }
)
_CLAMPS = ("clamp", "clamp_", "clamp_min", "clamp_min_", "hardtanh", "hardtanh_")


class Factors(NamedTuple):
    """Two tensors that an operator multiplies, and by how many multiply-accumulates."""

    first: Tensor
    second: Tensor
    macs: int


def operands(operator: str, args: Sequence[Any], out: Any) -> list[Factors]:
    """The products that an operator makes; empty for all others.

    Args:
        operator: name without overload, e.g. "convolution".
        args: as it was called.
        out: what it has given.
    """
    known = _PRODUCTS.get(operator)
    return [] if known is None else known(args, out)


def kept(operator: str, args: Sequence[Any]) -> Any:
    """What a KEEPING operator takes its values from."""
    if operator == "where":
        return args[1:3]
    if operator in ("copy", "copy_"):
        return args[1]
    if operator == "max" and len(args) > 1 and isinstance(args[1], Tensor):
        return args[:2]
    return args[0]


def is_non_negative(operator: str, args: Sequence[Any], entering: Iterable[bool]) -> bool:
    """Whether no value that it gives can be negative.

    Args:
        operator: as `operands`.
        args: as it was called.
        entering: of each tensor among the arguments, whether none of its values is.
    """
    if operator in _NON_NEGATIVE or (operator in _CLAMPS and _lower_end(operator, args) >= 0):
        return True
    exponents = [a for a in args[1:2] if isinstance(a, (int, float))]
    if operator in ("pow", "pow_") and any(exponent % 2 == 0 for exponent in exponents):
        return True
    numbers = [a for a in args if isinstance(a, (int, float)) and not isinstance(a, bool)]
    is_rising = operator in _RISING or operator in AVERAGING
    return is_rising and all(entering) and all(number >= 0 for number in numbers)


def adds_value(operator: str, args: Sequence[Any]) -> float | None:
    """A value that a KEEPING operator adds to those it keeps, None if it adds none."""
    if operator == "constant_pad_nd":
        return float(args[2]) if len(args) > 2 else 0.0
    if operator == "im2col":
        return 0.0 if any(args[3]) else None
    if operator == "masked_fill":
        return float("nan") if isinstance(args[2], Tensor) else float(args[2])
    return None


def _lower_end(operator: str, args: Sequence[Any]) -> float:
    default = -1.0 if operator.startswith("hardtanh") else float("-inf")
    low = args[1] if len(args) > 1 else default
    return float(low) if isinstance(low, (int, float)) else float("-inf")


def _convolution(args: Sequence[Any], out: Tensor) -> list[Factors]:
    x, weight, transposed = args[0], args[1], args[6]
    # each output position, or input position if transposed, meets one slice of the weight
    positions = x if transposed else out
    return [Factors(x, weight, positions.numel() * weight.numel() // max(1, weight.shape[0]))]


def _matrices(a: Tensor, b: Tensor) -> list[Factors]:
    return [Factors(a, b, a.numel() * (b.shape[-1] if b.ndim > 1 else 1))]


def _linear(args: Sequence[Any], out: Tensor) -> list[Factors]:
    return [Factors(args[0], args[1], out.numel() * args[1].shape[-1])]


def _attention(args: Sequence[Any], out: Any) -> list[Factors]:
    q, k, v = args[:3]
    scores = q.numel() * k.shape[-2]
    return [Factors(q, k, scores), Factors(q, v, scores // q.shape[-1] * v.shape[-1])]


def _recurrent(args: Sequence[Any], out: Any) -> list[Factors]:
    x, own, hidden, *_ = args
    steps = x.numel() // x.shape[-1]
    return [Factors(x, own, steps * own.numel()), Factors(args[5], hidden, steps * hidden.numel())]


def _bilinear(args: Sequence[Any], out: Tensor) -> list[Factors]:
    x, weight, y = args[:3]
    rows = x.numel() // x.shape[-1]
    return [Factors(x, weight, rows * weight.numel()), Factors(y, x, rows * weight[:, 0].numel())]


def _deformed(args: Sequence[Any], out: Tensor) -> list[Factors]:
    x, weight = args[:2]
    return [Factors(x, weight, out.numel() * weight.numel() // weight.shape[0])]


_PRODUCTS: dict[str, Callable[[Sequence[Any], Any], list[Factors]]] = {
    **dict.fromkeys(("convolution", "_convolution", "convolution_overrideable"), _convolution),
    "deform_conv2d": _deformed,
    "linear": _linear,
    **dict.fromkeys(("mm", "bmm", "mv", "dot", "vdot"), lambda args, out: _matrices(*args[:2])),
    **dict.fromkeys(
        ("addmm", "addmv", "baddbmm", "addbmm", "_addmm_activation", "addmm_", "baddbmm_"),
        lambda args, out: _matrices(*args[1:3]),
    ),
    **dict.fromkeys(
        (
            "_scaled_dot_product_flash_attention_for_cpu",
            "_scaled_dot_product_flash_attention",
            "_scaled_dot_product_efficient_attention",
            "_scaled_dot_product_cudnn_attention",
            "_scaled_dot_product_fused_attention_overrideable",
        ),
        _attention,
    ),
    "mkldnn_rnn_layer": _recurrent,
    "_trilinear": _bilinear,
}
