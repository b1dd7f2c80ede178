"""ONNX operators of the nodes that hold no weights."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from qat.export.integer.graph import AveragePool, Flatten, MaxPool, Node, Relu, Subsample
from qat.export.onnx.value import OnnxValue, dequantized
from qat.export.onnx.writer import OnnxWriter


def relu(writer: OnnxWriter, node: Relu, x: OnnxValue) -> OnnxValue:
    """max(x, 0), and min with the ceiling if there is one."""
    y = writer.add("Relu", [dequantized(writer, x)])
    if node.ceiling is not None:
        y = writer.add("Clip", [y, "", writer.scalar(node.ceiling)])
    return OnnxValue(y)


def max_pool(writer: OnnxWriter, node: MaxPool, x: OnnxValue) -> OnnxValue:
    """Of codes the maximum of the codes."""
    y = writer.add(
        "MaxPool",
        [x.name],
        kernel_shape=node.kernel,
        strides=node.stride,
        pads=[*node.padding, *node.padding],
        dilations=node.dilation,
        ceil_mode=int(node.ceil_mode),
    )
    return replace(x, name=y)


def average_pool(writer: OnnxWriter, node: AveragePool, x: OnnxValue) -> OnnxValue:
    """In float."""
    name = dequantized(writer, x)
    if not node.keeps_axes or node.shape[1:] == (1, 1):
        y = writer.add("GlobalAveragePool", [name])
    else:
        y = writer.add("AveragePool", [name], kernel_shape=node.kernel, strides=node.kernel)
    return OnnxValue(y if node.keeps_axes else writer.add("Flatten", [y]))


def flatten(writer: OnnxWriter, node: Flatten, x: OnnxValue) -> OnnxValue:
    """Of codes or of floats."""
    return replace(x, name=writer.add("Flatten", [x.name]))


def subsample(writer: OnnxWriter, node: Subsample, x: OnnxValue) -> OnnxValue:
    """Of codes or of floats; the channels that are added hold the code of 0."""
    name = x.name
    if node.stride != (1, 1):
        ends = np.array([np.iinfo(np.int64).max] * 2)
        window = [np.zeros(2, np.int64), ends, np.array([2, 3]), np.array(node.stride)]
        name = writer.add("Slice", [name, *map(writer.constant, window)])
    if node.channels != (0, 0):
        before, behind = node.channels
        pads = writer.constant(np.array([0, before, 0, 0, 0, behind, 0, 0]))
        zero = writer.scalar(x.zero, np.uint8 if x.is_codes else np.float32)
        name = writer.add("Pad", [name, pads, zero])
    return replace(x, name=name)


def concat(writer: OnnxWriter, parts: list[OnnxValue]) -> OnnxValue:
    """Codes of one grid stay codes, others become floats."""
    first = parts[0]
    is_one_grid = first.is_codes and len({(p.scale, p.zero) for p in parts}) == 1
    names = [part.name if is_one_grid else dequantized(writer, part) for part in parts]
    name = writer.add("Concat", names, axis=1)
    peak = max(part.peak for part in parts)
    return replace(first, name=name, peak=peak) if is_one_grid else OnnxValue(name)


OPERATORS: dict[type[Node], Callable[[OnnxWriter, Any, OnnxValue], OnnxValue]] = {
    Relu: relu,
    MaxPool: max_pool,
    AveragePool: average_pool,
    Flatten: flatten,
    Subsample: subsample,
}
