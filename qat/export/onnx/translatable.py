"""Functions in forms that PyTorch's ONNX exporter translates, and that our reader opens.

Each computes what the function of its name in PyTorch does.
"""

import math
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

_TWO = re.compile(r"([a-zA-Z]+),([a-zA-Z]+)->([a-zA-Z]+)")
_Pair = int | Sequence[int]


class Translatable(TorchFunctionMode):
    """While it is open, some of PyTorch's functions are those of this file, in this thread."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _FORMS.get(func, func)(*args, **(kwargs or {}))


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    *args: Any,
    **more: Any,
) -> Tensor:
    """Attention of any number of axes, on four, as the exporter knows no others."""
    lead = [tensor.shape[: -2 if query.ndim < 4 else -3] for tensor in (query, key, value)]
    if query.ndim in (0, 1, 4) or not lead[0] == lead[1] == lead[2]:
        return F.scaled_dot_product_attention(query, key, value, attn_mask, *args, **more)
    rows = query.shape[:-1]
    if attn_mask is not None:
        attn_mask = _four_axes(attn_mask.expand(*rows, key.shape[-2]))
    q, k, v = _four_axes(query), _four_axes(key), _four_axes(value)
    answer = F.scaled_dot_product_attention(q, k, v, attn_mask, *args, **more)
    return answer.reshape(*rows, value.shape[-1])


def _four_axes(tensor: Tensor) -> Tensor:
    lead, one = math.prod(tensor.shape[:-3]), (1,) * (3 - tensor.ndim)
    return tensor.reshape(lead, *one, *tensor.shape[-3:])


def adaptive_avg_pool2d(input: Tensor, output_size: Any) -> Tensor:
    """Of a whole map (1, (1, 1)), a mean; PyTorch makes a view by strides in channels-last layout.

    Behind such a view no sizes are known.
    """
    if output_size in (1, (1, 1), [1, 1]):
        return input.mean((-2, -1), keepdim=True)
    return F.adaptive_avg_pool2d(input, output_size)


def einsum(equation: Any, *operands: Any) -> Tensor:
    """Sums over the shared axes of two tensors, as a product of matrices.

    As an Einsum may grow to any size, our reader refuses it; what is no such product is left as it
    is, and refused.
    """
    parts = _TWO.fullmatch(equation.replace(" ", "")) if isinstance(equation, str) else None
    if parts is None or len(operands) != 2:
        return torch.einsum(equation, *operands)
    left, right, out = parts.groups()
    kept = "".join(axis for axis in left if axis in right and axis in out)
    summed = "".join(axis for axis in left if axis in right and axis not in out)
    rows = "".join(axis for axis in left if axis not in right)
    columns = "".join(axis for axis in right if axis not in left)
    one, two = operands
    sizes = dict(zip(left + right, (*one.shape, *two.shape), strict=False))
    is_product = sorted(kept + rows + columns) == sorted(out) and all(
        len(set(term)) == len(term) and tensor.shape == tuple(sizes.get(axis) for axis in term)
        for term, tensor in ((left, one), (right, two))
    )
    if not is_product:
        return torch.einsum(equation, *operands)

    def matrices(tensor: Tensor, term: str, *axes: str) -> Tensor:
        ordered = tensor.permute([term.index(axis) for axis in kept + "".join(axes)])
        lengths = [math.prod(sizes[axis] for axis in group) for group in axes]
        return ordered.reshape(*(sizes[axis] for axis in kept), *lengths)

    product = matrices(one, left, rows, summed) @ matrices(two, right, summed, columns)
    axes = kept + rows + columns
    answer = product.reshape([sizes[axis] for axis in axes])
    return answer.permute([axes.index(axis) for axis in out]).contiguous()


def fold(
    input: Tensor,
    output_size: _Pair,
    kernel_size: _Pair,
    dilation: _Pair = 1,
    padding: _Pair = 0,
    stride: _Pair = 1,
) -> Tensor:
    """Sums of overlapping blocks, by a transposed convolution with ones.

    Args:
        input: (N, C * kernel height * kernel width, L), or without N.
        output_size: of the map, without padding.
        kernel_size: of a block.
        dilation: between the values of a block.
        padding: of the map.
        stride: between blocks.
    """
    axes = [
        [value, value] if isinstance(value, int) else list(value)
        for value in (output_size, kernel_size, dilation, padding, stride)
    ]
    # the last block, and what is left behind it
    ends = [divmod(n + 2 * p - d * (k - 1) - 1, s) for n, k, d, p, s in zip(*axes, strict=True)]
    _, kernel, dilation, padding, stride = axes
    taps = kernel[0] * kernel[1]
    channels = input.shape[-2] // taps
    one_tap_each = torch.eye(taps, dtype=input.dtype, device=input.device)
    map_ = F.conv_transpose2d(
        input.reshape(*input.shape[:-1], *(last + 1 for last, _ in ends)),
        one_tap_each.view(taps, 1, *kernel).repeat(channels, 1, 1, 1),
        stride=stride,
        padding=padding,
        output_padding=[rest for _, rest in ends],
        groups=channels,
        dilation=dilation,
    )
    return map_.contiguous()  # whatever the layout of the blocks was


_FORMS = {
    F.scaled_dot_product_attention: scaled_dot_product_attention,
    F.adaptive_avg_pool2d: adaptive_avg_pool2d,
    torch.einsum: einsum,
    F.fold: fold,
}
