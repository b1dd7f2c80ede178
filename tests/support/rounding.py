"""Rounding bounds: how far float32 may move a value in front of a quantizer, and so which codes.

The trained network computes in float32, the integer reference in exact numbers. On the same codes
at a layer's input their results differ by at most

    E = |multiplier| g(n + 2) (|w| * |x|) + 10 u (|multiplier| |w * x| + |sizes of the offset|)

with u = 2^-24, g(k) = k u / (1 - k u) and n the products of one sum: the standard bound of a dot
product in any order, weights and activations rounded once each, and ten further roundings of the
batch norm, the residual sum and the division by the step. So a code can differ only where z / step
lies within E / step of a jump.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from qat.export.integer.graph import Add, Affine, AveragePool, Image, Layer, Node, Quantize
from qat.export.integer.network import IntegerNetwork, Value, layer_value, real
from qat.export.integer.numbers import over_channels

_UNIT = 2.0**-24
_FURTHER = 10


def rounding_bounds(network: IntegerNetwork, values: Mapping[str, Value]) -> dict[str, Tensor]:
    """Name of each quantizer -> bound E of the float32 network's value in front of it, in steps.

    Args:
        network: the integer reference.
        values: of all its nodes for some images (`IntegerNetwork.values`).

    Returns:
        float64 tensors of the values' shapes, N images.
    """
    bounds: dict[str, Tensor] = {}
    found: dict[str, Tensor] = {}
    for node in network.graph:
        before = [bounds[name] for name in node.inputs]
        bounds[node.name] = _bound(node, before, [values[name] for name in node.inputs])
        if isinstance(node, Quantize):
            z, rule = real(values[node.inputs[0]]), network.rules[node.name]
            found[node.name] = (before[0] + _FURTHER * _UNIT * z.abs()) / rule.step
    return found


def near_jumps(network: IntegerNetwork, values: Mapping[str, Value]) -> dict[str, Tensor]:
    """Name of each quantizer -> bool: which codes float32 arithmetic may move at all."""
    near = {}
    sources = {node.name: node.inputs[0] for node in network.graph if node.inputs}
    for name, bound in rounding_bounds(network, values).items():
        rule = network.rules[name]
        z = real(values[sources[name]])
        z = z / rule.step - over_channels(rule.shift, z)
        jumps = torch.zeros_like(z) if rule.is_sign else z.round().clamp(rule.low, rule.high - 1)
        near[name] = (z - jumps).abs() <= bound
    return near


def _bound(node: Node, before: list[Tensor], inputs: list[Value]) -> Tensor:
    """Bound of a node's float32 value, its own inputs' bounds given."""
    if isinstance(node, (Image, Quantize)):
        return torch.zeros((), dtype=torch.float64)
    if isinstance(node, Layer):
        return _layer_bound(node, before[0], real(inputs[0]))
    if isinstance(node, Add):
        size = sum(real(value).abs() for value in inputs)
        return before[0] + before[1] + _FURTHER * _UNIT * size
    if isinstance(node, Affine):
        x = real(inputs[0])
        multiplier = over_channels(node.multiplier.abs(), x)
        size = multiplier * x.abs() + over_channels(node.offset_size, x)
        return multiplier * before[0] + _FURTHER * _UNIT * size
    if isinstance(node, AveragePool):
        products = node.kernel[0] * node.kernel[1]
        return before[0].amax() + _gamma(products) * real(inputs[0]).abs().amax()
    return torch.stack([bound.amax() for bound in before]).amax()  # picking adds no error


def _layer_bound(node: Layer, before: Tensor, x: Tensor) -> Tensor:
    """E of the layer; `before` bounds the error of x itself."""
    sized = replace(
        node,
        codes=None,
        weight=node.weight.abs(),
        multiplier=node.multiplier.abs(),
        offset=torch.zeros_like(node.offset),
    )
    products = node.weight[0].numel()
    sizes = layer_value(sized, x.abs())
    carried = layer_value(sized, before.expand_as(x).contiguous())
    result = real(sizes) * (_gamma(products + 2) + _FURTHER * _UNIT)
    return result + real(carried) + _FURTHER * _UNIT * over_channels(node.offset_size, result)


def _gamma(count: int) -> float:
    return count * _UNIT / (1 - count * _UNIT)
