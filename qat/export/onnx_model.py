"""The network as a standard ONNX model that runs on integer kernels.

Activations are uint8 codes between QuantizeLinear and DequantizeLinear; a Clip of the codes stands
for fewer than eight bits. The staircase's ceiling is the nearest integer of x / step + 1/2, half a
step that goes into the bias of the layer before. QuantizeLinear breaks ties to even, which would be
wrong where x / step is an odd integer exactly, as on a shortcut between equal steps; the half step
is therefore smaller by 2^-20 steps, and codes differ on that width beyond a jump instead.

The bias of an integer layer counts in units of its sums, which for few bits are coarse. The int8
weights are therefore the levels times a factor per channel, and factor and bias are chosen together
so that every sum gives the network's code (`qat.export.requantize`).

Two forms. faithful: where two branches are added, the layers before are float convolutions of the
levels and the sum is float. fast: these layers are integer as well, their results are rounded to
uint8 with a step of their own (`qat.export.sums`), and the sum is one of uint8.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import onnx
import torch
from onnx import TensorProto
from torch import Tensor

from qat.export.codes import CodeRule, code_rule
from qat.export.graph import (
    Add,
    Affine,
    AveragePool,
    Concat,
    Flatten,
    Graph,
    Image,
    Layer,
    MaxPool,
    Node,
    Quantize,
    Relu,
    Subsample,
    consumers,
    pooled_first,
)
from qat.export.onnx_weights import add_integers, per_output
from qat.export.onnx_writer import OnnxWriter
from qat.export.requantize import int8_layer

Form = Literal["faithful", "fast"]

_BYTE = 255
_INT8 = 127
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


def onnx_model(
    graph: Graph,
    *,
    steps: Mapping[str, float] | None = None,
    exposed: bool = False,
    metadata: Mapping[str, str] | None = None,
) -> onnx.ModelProto:
    """The ONNX model of a network.

    Args:
        graph: as `qat.export.trace.network_graph` makes it.
        steps: name of each layer in front of a sum -> step of its uint8 result, the fast form;
            None writes the faithful one.
        exposed: whether the codes of every quantizer become outputs, by the quantizer's name; of
            one in front of a maximum the pooled codes, as `pooled_first` has them.
        metadata: key -> text, kept in the file.
    """
    emission = _Emission(pooled_first(graph), steps or {})
    return emission.model(exposed=exposed, metadata=dict(metadata or {}))


def summands(graph: Graph) -> list[Layer]:
    """The layers whose results are added and then quantized: those that the fast form rounds."""
    uses = consumers(graph)
    return [
        node
        for node in graph
        if isinstance(node, Layer)
        and [type(n) for n in uses[node.name]] == [Add]
        and _is_quantized_only(uses, uses[node.name][0])
    ]


def _is_quantized_only(uses: Mapping[str, Sequence[Node]], node: Node) -> bool:
    """Whether one quantizer of several levels is all that uses this value."""
    following = uses[node.name]
    return (
        len(following) == 1
        and isinstance(following[0], Quantize)
        and not code_rule(following[0].quantizer, following[0].path).is_sign
    )


class _Emission:
    """Writes one graph, node by node."""

    def __init__(self, graph: Graph, steps: Mapping[str, float]) -> None:
        self.graph = graph
        self.steps = steps
        self.nodes = {node.name: node for node in graph}
        self.uses = consumers(graph)
        quantizers = [node for node in graph if isinstance(node, Quantize)]
        self.rules = {node.name: code_rule(node.quantizer, node.path) for node in quantizers}
        self.raised = self._raised()
        self.writer = OnnxWriter()
        self.values: dict[str, OnnxValue] = {}

    def model(self, *, exposed: bool, metadata: dict[str, str]) -> onnx.ModelProto:
        for node in self.graph:
            self.values[node.name] = self._emit(node)
        outputs: dict[str, tuple[int, ...]] = {}
        for node in self.graph:
            if exposed and isinstance(node, Quantize):
                self.writer.add("Identity", [self.values[node.name].name], name=node.path)
                outputs[node.path] = node.shape
        logits = self._float(self.graph[-1].name)
        last = (logits, self.graph[-1].shape[0])
        return self.writer.model(self.graph[0].shape, last, exposed=outputs, metadata=metadata)

    def _raised(self) -> dict[str, float]:
        """Name of a node -> what its offset gains so that a staircase behind it is the nearest."""
        raised: dict[str, float] = {}
        for name, rule in self.rules.items():
            half = _half_step(rule)
            place = self._with_offset(self.nodes[name].inputs[0]) if half else None
            if place is not None:
                raised[place] = half
        return raised

    def _with_offset(self, name: str) -> str | None:
        """The layer or affine node whose offset adds to the value `name` and to nothing else."""
        node = self.nodes[name]
        if len(self.uses[name]) != 1:
            return None
        if isinstance(node, (Layer, Affine)):
            return name
        if isinstance(node, (Add, MaxPool)):
            return next(filter(None, map(self._with_offset, node.inputs)), None)
        return None

    def _emit(self, node: Node) -> OnnxValue:
        if isinstance(node, Image):
            return OnnxValue("image")
        if isinstance(node, Layer):
            return self._layer(node)
        if isinstance(node, Quantize):
            return self._quantize(node)
        if isinstance(node, Add):
            return OnnxValue(self.writer.add("Add", [self._float(name) for name in node.inputs]))
        if isinstance(node, Concat):
            return self._concat([self.values[name] for name in node.inputs])
        x = self.values[node.inputs[0]]
        return _SIMPLE[type(node)](self, node, x)  # type: ignore[no-any-return]

    def _concat(self, parts: list[OnnxValue]) -> OnnxValue:
        """Codes of one grid stay codes."""
        first = parts[0]
        is_one_grid = first.is_codes and len({(p.scale, p.zero) for p in parts}) == 1
        names = [part.name if is_one_grid else self._dequantized(part) for part in parts]
        name = self.writer.add("Concat", names, axis=1)
        peak = max(part.peak for part in parts)
        return replace(first, name=name, peak=peak) if is_one_grid else OnnxValue(name)

    # values

    def _float(self, name: str) -> str:
        """A value as a float tensor; codes are dequantized anew for every use."""
        return self._dequantized(self.values[name])

    def _dequantized(self, value: OnnxValue) -> str:
        if not value.is_codes:
            return value.name
        return self.writer.add("DequantizeLinear", [value.name, *self._grid(value)])

    def _grid(self, value: OnnxValue) -> tuple[str, str]:
        return self.writer.scalar(value.scale), self.writer.scalar(value.zero, np.uint8)

    def _quantize(self, node: Quantize) -> OnnxValue:
        rule, x = self.rules[node.name], self._float(node.inputs[0])
        if rule.is_sign:
            threshold = self.writer.constant(_channels(rule.shift.float(), node))
            is_one = self.writer.add("GreaterOrEqual", [x, threshold])
            two, none = self.writer.scalar(2, np.uint8), self.writer.scalar(0, np.uint8)
            return OnnxValue(self.writer.add("Where", [is_one, two, none]), 1.0, 1, 1)
        half = _half_step(rule)
        if half and self._with_offset(node.inputs[0]) is None:
            x = self.writer.add("Add", [x, self.writer.scalar(half)])
        zero = 0 if rule.low >= 0 else (_BYTE + 1) // 2
        return self._codes(x, OnnxValue("", rule.step, zero, rule.peak), rule.low, rule.high)

    def _codes(self, x: str, grid: OnnxValue, low: int, high: int) -> OnnxValue:
        """Quantize a float tensor to uint8, clipped to the codes low .. high."""
        name = self.writer.add("QuantizeLinear", [x, *self._grid(grid)])
        least, most = grid.zero + low, grid.zero + high
        ends = [
            "" if least == 0 else self.writer.scalar(least, np.uint8),
            "" if most == _BYTE else self.writer.scalar(most, np.uint8),
        ]
        if any(ends):
            name = self.writer.add("Clip", [name, *ends])
        return replace(grid, name=name)

    # layers

    def _layer(self, node: Layer) -> OnnxValue:
        x = self.values[node.inputs[0]]
        step = self.steps.get(node.name)
        wants_integers = step is not None or _is_quantized_only(self.uses, node)
        if wants_integers and x.is_codes and _fits_int8(node):
            y = self._integer_layer(node, x, step)
        else:
            y = self._float_layer(node, x)
        if step is None:
            return OnnxValue(y)
        grid = OnnxValue("", step, (_BYTE + 1) // 2, (_BYTE + 1) // 2)
        return self._codes(y, grid, -grid.zero, _BYTE - grid.zero)

    def _integer_layer(self, node: Layer, x: OnnxValue, step: float | None) -> str:
        """DequantizeLinear around x, weight and bias, which runtimes fuse into QLinearConv.

        `step` is that of the uint8 result in front of a sum; None in front of a quantizer.
        """
        assert node.codes is not None  # by `_fits_int8`
        if step is None:
            rule, offset = self.rules[self.uses[node.name][0].name], node.offset
        else:  # signed codes, the nearest
            rule = CodeRule(step, -_INT8 - 1, _INT8, torch.tensor(0.5))
            offset = node.offset + self.raised.get(node.name, 0.0)
        found = int8_layer(node, offset, rule, x_scale=x.scale, x_peak=x.peak)
        integers = add_integers(self.writer, node.codes)
        factors = per_output(self.writer, found.factor, torch.int32, node.weight)
        wide = self.writer.add("Mul", [integers, factors])
        narrow = self.writer.add("Cast", [wide], to=TensorProto.INT8)
        weight = self._per_channel(narrow, found.scale, np.int8)
        bias = self.writer.constant(found.bias.int().numpy())
        bias_scale = found.scale * torch.tensor(x.scale).float()
        inputs = [self._dequantized(x), weight, self._per_channel(bias, bias_scale, np.int32)]
        return self._product(node, inputs)

    def _per_channel(self, name: str, scale: Tensor, dtype: Any) -> str:
        zeros = self.writer.constant(np.zeros(len(scale), dtype=dtype))
        inputs = [name, self.writer.constant(scale.numpy()), zeros]
        return self.writer.add("DequantizeLinear", inputs, axis=0)

    def _float_layer(self, node: Layer, x: OnnxValue) -> str:
        offset = (node.offset + self.raised.get(node.name, 0.0)).float()
        if node.codes is None:
            shape = (-1, *(1 for _ in node.weight.shape[1:]))
            folded = (node.weight.double() * node.multiplier.view(shape)).float()
            weight = self.writer.constant(folded.numpy())
        else:
            _, unit = node.codes.integers()
            integers = add_integers(self.writer, node.codes)
            levels = self.writer.add("Cast", [integers], to=TensorProto.FLOAT)
            scale = per_output(self.writer, node.multiplier * unit, torch.float32, node.weight)
            weight = self.writer.add("Mul", [levels, scale])
        bias = self.writer.constant(offset.numpy())
        return self._product(node, [self._dequantized(x), weight, bias])

    def _product(self, node: Layer, inputs: list[str]) -> str:
        if not node.is_conv:
            return self.writer.add("Gemm", inputs, transB=1)
        return self.writer.add(
            "Conv",
            inputs,
            strides=node.stride,
            pads=[*node.padding, *node.padding],
            dilations=node.dilation,
            group=node.groups,
        )

    # the rest

    def affine(self, node: Affine, x: OnnxValue) -> OnnxValue:
        offset = node.offset + self.raised.get(node.name, 0.0)
        multiplier = self.writer.constant(_channels(node.multiplier.float(), node))
        scaled = self.writer.add("Mul", [self._dequantized(x), multiplier])
        shift = self.writer.constant(_channels(offset.float(), node))
        return OnnxValue(self.writer.add("Add", [scaled, shift]))

    def relu(self, node: Relu, x: OnnxValue) -> OnnxValue:
        y = self.writer.add("Relu", [self._dequantized(x)])
        if node.ceiling is not None:
            y = self.writer.add("Clip", [y, "", self.writer.scalar(node.ceiling)])
        return OnnxValue(y)

    def max_pool(self, node: MaxPool, x: OnnxValue) -> OnnxValue:
        y = self.writer.add(
            "MaxPool",
            [x.name],
            kernel_shape=node.kernel,
            strides=node.stride,
            pads=[*node.padding, *node.padding],
            dilations=node.dilation,
            ceil_mode=int(node.ceil_mode),
        )
        return replace(x, name=y)

    def average_pool(self, node: AveragePool, x: OnnxValue) -> OnnxValue:
        before = self.nodes[node.inputs[0]].shape
        if node.kernel == before[1:]:
            y = self.writer.add("GlobalAveragePool", [self._dequantized(x)])
        else:
            y = self.writer.add(
                "AveragePool", [self._dequantized(x)], kernel_shape=node.kernel, strides=node.kernel
            )
        return OnnxValue(y if node.keeps_axes else self.writer.add("Flatten", [y]))

    def flatten(self, node: Flatten, x: OnnxValue) -> OnnxValue:
        return replace(x, name=self.writer.add("Flatten", [x.name]))

    def subsample(self, node: Subsample, x: OnnxValue) -> OnnxValue:
        name = x.name
        if node.stride != (1, 1):
            ends = np.array([np.iinfo(np.int64).max] * 2)
            window = [np.zeros(2, np.int64), ends, np.array([2, 3]), np.array(node.stride)]
            name = self.writer.add("Slice", [name, *map(self.writer.constant, window)])
        if node.channels != (0, 0):
            before, behind = node.channels
            pads = self.writer.constant(np.array([0, before, 0, 0, 0, behind, 0, 0]))
            zero = self.writer.scalar(x.zero, np.uint8 if x.is_codes else np.float32)
            name = self.writer.add("Pad", [name, pads, zero])
        return replace(x, name=name)


_SIMPLE: dict[type[Node], Any] = {
    Affine: _Emission.affine,
    Relu: _Emission.relu,
    MaxPool: _Emission.max_pool,
    AveragePool: _Emission.average_pool,
    Flatten: _Emission.flatten,
    Subsample: _Emission.subsample,
}


def _half_step(rule: CodeRule) -> float:
    """What turns the rule's ceiling into the nearest integer, ties downwards; 0 for a sign."""
    return 0.0 if rule.is_sign else (0.5 - float(rule.shift) - _TIE) * rule.step


def _fits_int8(node: Layer) -> bool:
    """Whether the levels of a weight are integers of eight bits, of either sign."""
    return node.codes is not None and int(node.codes.integers()[0].abs().max()) <= _INT8


def _channels(values: Tensor, node: Node) -> Any:
    shape = () if values.ndim == 0 else (-1, *(1 for _ in node.shape[1:]))
    return values.view(shape).numpy()
