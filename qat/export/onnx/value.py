"""Values of an ONNX graph: float tensors, or uint8 codes with their grid."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qat.export.integer.graph import Node
from qat.export.onnx.writer import OnnxWriter
from qat.nn.activation_codes import CodeRule

_BYTE = 255
_MIDDLE = 128
_TIE = 2.0**-20  # of a step; about what float32 can tell apart at the largest code of four bits


@dataclass(frozen=True, slots=True)
class OnnxValue:
    """A value of the ONNX graph.

    Attributes:
        name: of a float tensor, or of uint8 codes.
        scale: of the codes, 0 for a float tensor.
        zero: the code of 0.
        peak: largest |code - zero|.
    """

    name: str
    scale: float = 0.0
    zero: int = 0
    peak: int = 0

    @property
    def is_codes(self) -> bool:
        """Whether it is uint8 codes."""
        return self.scale > 0


def dequantized(writer: OnnxWriter, value: OnnxValue) -> str:
    """A value as a float tensor; codes are dequantized anew for every use, as runtimes expect."""
    if not value.is_codes:
        return value.name
    return writer.add("DequantizeLinear", [value.name, *_grid(writer, value)])


def nearest_codes(writer: OnnxWriter, x: str, rule: CodeRule) -> OnnxValue:
    """uint8 codes of a float tensor: the nearest of the rule's, whatever its shift.

    Args:
        writer: of the graph.
        x: name of the tensor, `half_step(rule)` added already.
        rule: not a sign; the code of 0 is 0, or 128 where there are negative codes.
    """
    zero = code_of_zero(rule)
    value = OnnxValue("", rule.step, zero, rule.peak)
    name = writer.add("QuantizeLinear", [x, *_grid(writer, value)])
    least, most = zero + rule.low, zero + rule.high
    ends = [
        "" if least == 0 else writer.scalar(least, np.uint8),
        "" if most == _BYTE else writer.scalar(most, np.uint8),
    ]
    return replace(value, name=writer.add("Clip", [name, *ends]) if any(ends) else name)


def sign_codes(writer: OnnxWriter, x: str, threshold: str) -> OnnxValue:
    """The codes 0 and 2 of -1 and 1; 1 is the zero that pads."""
    is_one = writer.add("GreaterOrEqual", [x, threshold])
    two, none = writer.scalar(2, np.uint8), writer.scalar(0, np.uint8)
    return OnnxValue(writer.add("Where", [is_one, two, none]), scale=1.0, zero=1, peak=1)


def signed_bytes(step: float) -> CodeRule:
    """The nearest of the codes -128 .. 127."""
    return CodeRule(step, -128, 127, torch.tensor(0.5, dtype=torch.float64))


def code_of_zero(rule: CodeRule) -> int:
    """The byte that stands for 0."""
    if rule.is_sign:
        return 1
    return 0 if rule.low >= 0 else _MIDDLE


def half_step(rule: CodeRule) -> float:
    """What turns the rule's ceiling into the nearest integer, ties downwards; 0 for a sign."""
    return 0.0 if rule.is_sign else (0.5 - float(rule.shift) - _TIE) * rule.step


def over_axes(values: Tensor, node: Node) -> Any:
    """Numbers of each channel, or one, as an array that broadcasts over the node's value."""
    shape = () if values.ndim == 0 else (-1, *(1 for _ in node.shape[1:]))
    return values.float().view(shape).numpy()


def _grid(writer: OnnxWriter, value: OnnxValue) -> tuple[str, str]:
    return writer.scalar(value.scale), writer.scalar(value.zero, np.uint8)
