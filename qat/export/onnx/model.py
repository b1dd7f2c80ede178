"""ONNX model of a network, standard operators that run on integer kernels.

Activations are uint8 codes between QuantizeLinear and DequantizeLinear; a Clip of the codes stands
for fewer than eight bits. The staircase's ceiling is the nearest integer of x / step + 1/2, half a
step that goes into the bias of the layer before. QuantizeLinear breaks ties to even, which would be
wrong where x / step is an odd integer exactly, as on a shortcut between equal steps; the half step
is therefore smaller by 2^-20 steps, and codes differ on that width beyond a jump instead.

The bias of an integer layer counts in units of its sums, which for few bits are coarse. The int8
weights are therefore the levels times a factor per channel, and factor and bias are chosen together
so that every sum gives the network's code (`qat.export.onnx.requantize`).

Two forms. faithful: where two branches are added, the layers before are float convolutions of the
levels and the sum is float, as is the first layer on the image. fast: these layers are integer as
well; image and summands are rounded to bytes with steps of their own
(`qat.export.onnx.fast_steps`), and the sum is one of bytes.
"""

from collections.abc import Mapping, Sequence

import onnx

from qat.errors import expect
from qat.export.integer.graph import (
    Add,
    Affine,
    Concat,
    Graph,
    Image,
    Layer,
    Node,
    Quantize,
    check_exact_form,
    code_rules,
    consumers,
    pooled_first,
)
from qat.export.onnx.layers import fits_int8, float_layer, integer_layer
from qat.export.onnx.operators import OPERATORS, concat
from qat.export.onnx.value import (
    OnnxValue,
    dequantized,
    half_step,
    nearest_codes,
    over_axes,
    sign_codes,
    signed_bytes,
)
from qat.export.onnx.writer import OnnxWriter
from qat.nn.activation_codes import code_rule


def onnx_model(
    graph: Graph,
    *,
    steps: Mapping[str, float] | None = None,
    exposed: bool = False,
    metadata: Mapping[str, str] | None = None,
) -> onnx.ModelProto:
    """The ONNX model of a network.

    Args:
        graph: as `qat.export.integer.trace.network_graph` makes it.
        steps: of the fast form, as `fast_steps` finds them: name of each layer in front of a sum
            -> step of its uint8 result, of the image -> step of its bytes; None
            writes the faithful form.
        exposed: whether the codes of every quantizer become outputs, by the quantizer's name; of
            one in front of a maximum perhaps the pooled codes, see `emitted_graph`.
        metadata: key -> text, kept in the file.
    """
    expect(graph, list, "graph", "give what network_graph(net, converted, example) answers")
    emission = Emission(emitted_graph(graph, steps or {}), steps or {})
    return emission.model(exposed=exposed, metadata=dict(metadata or {}))


def emitted_graph(graph: Graph, steps: Mapping[str, float]) -> Graph:
    """The graph as it is written: behind a float image maxima come before quantizers."""
    return graph if graph[0].name in steps else pooled_first(graph)


def integer_stem(graph: Graph) -> Image | None:
    """The image, if all that uses it is a layer that bytes would make one of integers."""
    uses = consumers(graph)
    image, layer = graph[0], uses[graph[0].name][0]
    if not isinstance(image, Image) or len(uses[image.name]) != 1 or not isinstance(layer, Layer):
        return None
    return image if fits_int8(layer) and _is_quantized_only(uses, layer) else None


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


class Emission:
    """Writes one graph, node by node; what a quantizer and a layer become may be replaced.

    Args:
        graph: of the network.
        steps: of the layers in front of sums, see `onnx_model`.
    """

    def __init__(self, graph: Graph, steps: Mapping[str, float]) -> None:
        check_exact_form(graph)
        self.graph = graph
        self.steps = steps
        self.nodes = {node.name: node for node in graph}
        self.uses = consumers(graph)
        self.rules = code_rules(graph)
        self.raised = self._raised()
        self.writer = OnnxWriter()
        self.values: dict[str, OnnxValue] = {}

    def model(self, *, exposed: bool, metadata: dict[str, str]) -> onnx.ModelProto:
        """The finished model, see `onnx_model`."""
        for node in self.graph:
            self.values[node.name] = self._emit(node)
        outputs: dict[str, tuple[int, ...]] = {}
        for node in self.graph:
            if exposed and isinstance(node, Quantize):
                self.writer.add("Identity", [self.values[node.name].name], name=node.path)
                outputs[node.path] = node.shape
        last = (self.float_name(self.graph[-1].name), self.graph[-1].shape)
        return self.writer.model(self.graph[0].shape, last, exposed=outputs, metadata=metadata)

    def _raised(self) -> dict[str, float]:
        """Name of a node -> what its offset gains so that a staircase behind it is the nearest."""
        raised: dict[str, float] = {}
        for name, rule in self.rules.items():
            place = self._with_offset(self.nodes[name].inputs[0])
            if place is not None and half_step(rule):
                raised[place] = half_step(rule)
        return raised

    def _with_offset(self, name: str) -> str | None:
        """The layer or affine node whose offset adds to the value `name` and to nothing else."""
        node = self.nodes[name]
        if len(self.uses[name]) != 1:
            return None
        if isinstance(node, (Layer, Affine)):
            return name
        if isinstance(node, Add):  # behind a maximum the sum keeps the maximum in float
            return next(filter(None, map(self._with_offset, node.inputs)), None)
        return None

    def _emit(self, node: Node) -> OnnxValue:
        inputs = [self.values[name] for name in node.inputs]
        if isinstance(node, Image):
            return self._image(node)
        if isinstance(node, Layer):
            return self.layer(node, inputs[0])
        if isinstance(node, Quantize):
            return self.quantize(node)
        if isinstance(node, Affine):
            return self._affine(node, inputs[0])
        if isinstance(node, Add):
            return OnnxValue(
                self.writer.add("Add", [self.float_name(name) for name in node.inputs])
            )
        if isinstance(node, Concat):
            return concat(self.writer, inputs)
        return OPERATORS[type(node)](self.writer, node, inputs[0])

    def _image(self, node: Image) -> OnnxValue:
        step = self.steps.get(node.name)
        if step is None:
            return OnnxValue("image")
        return nearest_codes(self.writer, "image", signed_bytes(step))

    def float_name(self, name: str) -> str:
        """A value as a float tensor."""
        return dequantized(self.writer, self.values[name])

    def quantize(self, node: Quantize) -> OnnxValue:
        """Codes of the value in front of a quantizer."""
        rule, x = self.rules[node.name], self.float_name(node.inputs[0])
        if rule.is_sign:
            threshold = self.writer.constant(over_axes(rule.shift, node))
            return sign_codes(self.writer, x, threshold)
        if half_step(rule) and self._with_offset(node.inputs[0]) is None:
            x = self.writer.add("Add", [x, self.writer.scalar(half_step(rule))])
        return nearest_codes(self.writer, x, rule)

    def _affine(self, node: Affine, x: OnnxValue) -> OnnxValue:
        offset = node.offset + self.raised.get(node.name, 0.0)
        multiplier = self.writer.constant(over_axes(node.multiplier, node))
        scaled = self.writer.add("Mul", [dequantized(self.writer, x), multiplier])
        return OnnxValue(
            self.writer.add("Add", [scaled, self.writer.constant(over_axes(offset, node))])
        )

    def layer(self, node: Layer, x: OnnxValue) -> OnnxValue:
        """A layer of integers where a quantizer or a rounded sum follows, else of floats."""
        raised = node.offset + self.raised.get(node.name, 0.0)
        is_integer = x.is_codes and fits_int8(node)
        if node.name in self.steps:  # in front of a sum: signed bytes, the nearest
            rule = signed_bytes(self.steps[node.name])
            if is_integer:
                y = integer_layer(self.writer, node, x, offset=raised, rule=rule)
            else:
                y = float_layer(self.writer, node, x, offset=raised)
            return nearest_codes(self.writer, y, rule)
        if is_integer and _is_quantized_only(self.uses, node):
            rule = self.rules[self.uses[node.name][0].name]
            return OnnxValue(integer_layer(self.writer, node, x, offset=node.offset, rule=rule))
        return OnnxValue(float_layer(self.writer, node, x, offset=raised))
