"""Convolutions and linear layers in ONNX: of int8 weights on codes, or of float ones."""

from typing import Any

import numpy as np
import torch
from onnx import TensorProto
from torch import Tensor

from qat.export.integer.graph import Layer
from qat.export.onnx.requantize import int8_layer
from qat.export.onnx.value import OnnxValue, dequantized
from qat.export.onnx.weights import add_integers, per_output
from qat.export.onnx.writer import OnnxWriter
from qat.nn.activation_codes import CodeRule

_INT8 = 127


def fits_int8(node: Layer) -> bool:
    """Whether the levels of a weight are integers of eight bits, of either sign."""
    return node.codes is not None and int(node.codes.integers()[0].abs().max()) <= _INT8


def integer_layer(
    writer: OnnxWriter, node: Layer, x: OnnxValue, *, offset: Tensor, rule: CodeRule
) -> str:
    """DequantizeLinear around x, weight and bias, which runtimes fuse into QLinearConv.

    Args:
        writer: of the graph.
        node: the layer, which `fits_int8`.
        x: codes.
        offset: of the layer, float64 (O,); with the rule's half step left out, as the bias is
            chosen so that the nearest code is the rule's.
        rule: of what quantizes the result.
    """
    assert node.codes is not None  # by `fits_int8`
    found = int8_layer(
        node, offset, rule, x_scale=x.scale, x_peak=x.peak, largest_byte=x.zero + x.peak
    )
    integers = add_integers(writer, node.codes)
    factors = per_output(writer, found.factor, torch.int32, node.weight)
    narrow = writer.add("Cast", [writer.add("Mul", [integers, factors])], to=TensorProto.INT8)
    weight = _per_channel(writer, narrow, found.scale, np.int8)
    bias_scale = found.scale * torch.tensor(x.scale).float()
    bias = writer.constant(found.bias.int().numpy())
    inputs = [dequantized(writer, x), weight, _per_channel(writer, bias, bias_scale, np.int32)]
    return product(writer, node, inputs)


def float_layer(writer: OnnxWriter, node: Layer, x: OnnxValue, *, offset: Tensor) -> str:
    """The layer on floats, its weight unpacked from the same bits and scaled at load.

    Codes are cast and not dequantized, their scale goes into the weight: a float layer between
    DequantizeLinear and QuantizeLinear is taken for one to quantize by onnxruntime, which would
    round the weights on a grid of its own.
    """
    multiplier = node.multiplier * (x.scale if x.is_codes else 1.0)
    if node.codes is None:
        shape = (-1, *(1 for _ in node.weight.shape[1:]))
        folded = node.weight.double() * multiplier.view(shape)
        weight = writer.constant(folded.float().numpy())
    else:
        _, unit = node.codes.integers()
        levels = writer.add("Cast", [add_integers(writer, node.codes)], to=TensorProto.FLOAT)
        scale = per_output(writer, multiplier * unit, torch.float32, node.weight)
        weight = writer.add("Mul", [levels, scale])
    bias = writer.constant(offset.float().numpy())
    return product(writer, node, [_as_float(writer, x), weight, bias])


def _as_float(writer: OnnxWriter, x: OnnxValue) -> str:
    """A float tensor, or codes counted from the code of 0 as one."""
    if not x.is_codes:
        return x.name
    wide = writer.add("Cast", [x.name], to=TensorProto.FLOAT)
    return writer.add("Sub", [wide, writer.scalar(x.zero)]) if x.zero else wide


def _per_channel(writer: OnnxWriter, name: str, scale: Tensor, dtype: Any) -> str:
    zeros = writer.constant(np.zeros(len(scale), dtype=dtype))
    inputs = [name, writer.constant(scale.numpy()), zeros]
    return writer.add("DequantizeLinear", inputs, axis=0)


def product(writer: OnnxWriter, node: Layer, inputs: list[str]) -> str:
    """The bare convolution or linear layer of input, weight and perhaps bias."""
    if not node.is_conv:
        return writer.add("Gemm", inputs, transB=1)
    return writer.add(
        "Conv",
        inputs,
        strides=node.stride,
        pads=[*node.padding, *node.padding],
        dilations=node.dilation,
        group=node.groups,
    )
