"""QONNX model, for tool chains of FPGAs: float tensors between quantizer nodes.

The staircase is a `Quant` that rounds up, binary weights and signs are `BipolarQuant`; batch norms
are a product and a sum behind their layer. Weights stand in the file as floats on their grid.

Source: arXiv:2206.07527.
"""

from collections.abc import Mapping

import onnx
import torch

from qat.export.integer.graph import Graph, Layer, Quantize
from qat.export.integer.refusals import check_even_levels
from qat.export.onnx.layers import product
from qat.export.onnx.model import Emission
from qat.export.onnx.value import OnnxValue, over_axes
from qat.export.packed.weight_codes import WeightCodes

_DOMAIN = "qonnx.custom_op.general"


def qonnx_model(graph: Graph, *, metadata: Mapping[str, str] | None = None) -> onnx.ModelProto:
    """The QONNX model of a network.

    Args:
        graph: as `qat.export.integer.trace.network_graph` makes it.
        metadata: key -> text, kept in the file.

    Raises:
        SpecError: a weight whose levels are not evenly spaced around 0 (powers of two, DoReFa).
    """
    return _QonnxEmission(graph, {}).model(exposed=False, metadata=dict(metadata or {}))


class _QonnxEmission(Emission):
    """Quantizer nodes in place of codes and integer layers."""

    def quantize(self, node: Quantize) -> OnnxValue:
        """One node that quantizes and dequantizes; the nearest code of a half is the even one."""
        rule, x = self.rules[node.name], self.float_name(node.inputs[0])
        if rule.is_sign:
            shift = self.writer.constant(over_axes(-rule.shift, node))
            return OnnxValue(self._bipolar(self.writer.add("Add", [x, shift]), torch.ones(())))
        rounding = "CEIL" if float(rule.shift) == 0 else "ROUND"
        step = torch.tensor(rule.step)
        return OnnxValue(self._quant(x, step, rule.low, rule.high, rounding=rounding))

    def layer(self, node: Layer, x: OnnxValue) -> OnnxValue:
        """The layer on its weight's grid, then the batch norm."""
        multiplier = node.multiplier
        if node.codes is None:
            weight = self.writer.constant(node.weight.numpy())
        else:
            weight = self._weight(node.path, node.codes)
            scale = node.codes.scale.double().flatten()
            # a scale of 0 has no inverse, and its weights no effect
            multiplier = torch.where(scale == 0, 0.0, multiplier / scale)
        y = product(self.writer, node, [x.name, weight])
        y = self.writer.add("Mul", [y, self.writer.constant(over_axes(multiplier, node))])
        return OnnxValue(
            self.writer.add("Add", [y, self.writer.constant(over_axes(node.offset, node))])
        )

    def _weight(self, path: str, codes: WeightCodes) -> str:
        hard = self.writer.constant(codes.hard().numpy())
        levels = codes.quantizer.levels
        if len(levels) == 2:
            return self._bipolar(hard, codes.scale)
        check_even_levels(path, levels)
        return self._quant(hard, codes.scale, int(levels[0]), int(levels[-1]), rounding="ROUND")

    def _bipolar(self, x: str, scale: torch.Tensor) -> str:
        return self.writer.add(
            "BipolarQuant", [x, self.writer.constant(scale.numpy())], domain=_DOMAIN
        )

    def _quant(self, x: str, scale: torch.Tensor, low: int, high: int, *, rounding: str) -> str:
        """Codes low .. high, of as many bits as these take."""
        bits = (high - low).bit_length()
        inputs = [
            x,
            self.writer.constant(scale.numpy()),
            self.writer.scalar(0.0),
            self.writer.scalar(bits),
        ]
        return self.writer.add(
            "Quant",
            inputs,
            domain=_DOMAIN,
            signed=int(low < 0),
            narrow=int(low == -high),
            rounding_mode=rounding,
        )
