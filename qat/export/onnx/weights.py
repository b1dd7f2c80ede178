"""Weights in an ONNX file at their true bits, unpacked by standard operators when it is loaded.

    bytes -> BitShift, BitwiseAnd -> fields -> codes -> Gather(levels) -> Reshape -> integers

A runtime that folds constants does this once, at load.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import TensorProto
from torch import Tensor

from qat.export.onnx.writer import OnnxWriter
from qat.export.packed.weight_codes import WeightCodes, stored_codes
from qat.functional.bits import field_width


def add_integers(writer: OnnxWriter, weight: WeightCodes) -> str:
    """Nodes that unpack a weight: int32 of its shape, levels in units of `weight.integers()[1]`."""
    bits, count = weight.bits, weight.codes.numel()
    width = field_width(bits)
    parts = bits // width
    data = writer.constant(_array(weight.packed())[:, None])
    fields = data
    if width < 8:
        shifts = writer.constant(np.arange(0, 8, width, dtype=np.uint8))
        shifted = writer.add("BitShift", [data, shifts], direction="RIGHT")
        fields = writer.add("BitwiseAnd", [shifted, writer.scalar(2**width - 1, np.uint8)])
    flat = writer.add("Reshape", [fields, _shape(writer, -1)])
    if len(_array(weight.packed())) * (8 // width) > count * parts:  # bits behind the last code
        flat = writer.add("Slice", [flat, _shape(writer, 0), _shape(writer, count * parts)])
    codes = writer.add("Cast", [flat], to=TensorProto.INT32)
    if parts > 1:
        table = writer.add("Reshape", [codes, _shape(writer, count, parts)])
        powers = writer.constant((2 ** (width * np.arange(parts))).astype(np.int32))
        raised = writer.add("Mul", [table, powers])
        codes = writer.add("ReduceSum", [raised, _shape(writer, 1)], keepdims=0)
    levels = writer.constant(_levels(weight))
    integers = writer.add("Gather", [levels, codes])
    return writer.add("Reshape", [integers, _shape(writer, *weight.codes.shape)])


def per_output(writer: OnnxWriter, values: Tensor, dtype: torch.dtype, like: Tensor) -> str:
    """A constant (O, 1, ..., 1) that broadcasts over a weight; a single number if all are equal."""
    shaped = values.to(dtype).view(-1, *(1 for _ in like.shape[1:]))
    if bool((shaped == shaped.flatten()[0]).all()):
        shaped = shaped.flatten()[0]
    return writer.constant(_array(shaped))


def _levels(weight: WeightCodes) -> NDArray[np.int32]:
    """The integer level of each stored code; 0 for codes that the grid does not have."""
    codes = stored_codes(weight.bits)
    known = codes.short().abs() <= weight.largest_code
    _, unit = weight.integers()
    levels = weight.quantizer.decode(torch.where(known, codes, 0), torch.ones(())) / unit
    return _array(torch.where(known, levels, 0).int())


def _shape(writer: OnnxWriter, *sizes: int) -> str:
    return writer.constant(np.array(sizes, dtype=np.int64))


def _array(tensor: Tensor) -> NDArray[np.int32]:
    return tensor.detach().cpu().contiguous().numpy()
