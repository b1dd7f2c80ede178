"""Surgery on an exported graph: operators for the marks of quantizers, packed weights for inputs.

Quantizers become their own operations: ceil, clip, times the step. Not QuantizeLinear alone, whose
nearest integer is another one where x / step is an integer exactly, as on a shortcut between equal
steps; to move x by a margin instead moved codes in twice as many images.

Weights on a grid are unpacked from their true bits, which a runtime folds when it loads the file.
Linear layers on tokens (MatMul) multiply codes by codes in integers:

    ceil(x / step - shift) -> QuantizeLinear, of step 1 -> Clip on the bytes -> DequantizeLinear

Convolutions are floats on these levels, as onnxruntime's integer convolution with wide sums takes
longer than its float one.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, count

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from qat.errors import CheckpointError, SpecError
from qat.export.onnx.sizes import Sizes
from qat.export.onnx.weights import add_integers
from qat.export.onnx.writer import OnnxWriter
from qat.export.packed.weight_codes import WeightCodes
from qat.nn.activation_codes import CodeRule
from qat.storage.reading import parsing

MARKS = "qat"  # the domain of the marks, which are gone in the end
# what moves values and does not compute; onnxruntime takes bytes through these
_MOVES = ("Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")


class Surgery:
    """Writes an exported graph anew.

    Args:
        graph: of `torch.onnx.export`; it is changed.
        rules: of the marks, by their numbers, each with its quantizer's name, by which the file
            calls its values, too: `quantized(NAME)`.
        coded: name of each input that is a weight on a grid -> its codes.
    """

    def __init__(
        self,
        graph: onnx.GraphProto,
        rules: Sequence[tuple[str, CodeRule]],
        coded: Mapping[str, WeightCodes],
    ) -> None:
        self._graph, self._rules, self._coded = graph, rules, coded
        self._writer = OnnxWriter(prefix="qat.")
        self._last = f"{graph.output[0].name} of the graph"  # the writer's own node has its name
        renamed = self._writer.keep(graph.initializer) | {graph.output[0].name: self._last}
        for node in graph.node:
            if node.domain == MARKS and node.output[0] not in renamed:
                renamed[node.output[0]] = self._called(node, set(renamed.values()))
        self._maker: dict[str, onnx.NodeProto] = {}
        self._readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in graph.node:
            for names in (node.input, node.output):
                names[:] = [renamed.get(name, name) for name in names]
            self._maker |= dict.fromkeys(node.output, node)
            for name in node.input:
                self._readers[name].append(node)
        self._in_integers = {
            turned.output[0]
            for name, codes in self._coded.items()
            if codes.integers()[0].abs().max() < 128  # int8
            for turned in self._readers[name]
            if self._multiplies_codes(turned)
        }

    def model(self, image: tuple[int, ...], metadata: Mapping[str, str]) -> onnx.ModelProto:
        """The finished model.

        Raises:
            SpecError: an operator, or a value of a size, that the reader of our files refuses.
        """
        for value in self._graph.input:
            if value.name in self._coded:
                self._unpack(value.name, self._coded[value.name])
        for node in self._graph.node:
            if node.domain == MARKS:
                self._quantize(node)
            elif node.output[0] not in self._in_integers:
                self._writer.copy(node)
        _, *axes = self._graph.output[0].type.tensor_type.shape.dim
        shape = tuple(axis.dim_value for axis in axes)
        model = self._writer.model(image, (self._last, shape), metadata=metadata)
        try:
            with parsing("this network", "ship the packed file"):
                Sizes(model, "this network", "ship the packed file").check(2)
        except CheckpointError as error:
            raise SpecError(f"no file of ours could be opened again: {error}") from None
        return model

    def _multiplies_codes(self, turned: onnx.NodeProto) -> bool:
        """Whether a node is the transpose of a weight that nothing but codes is multiplied by."""
        readers = self._readers[turned.output[0]]
        return turned.op_type == "Transpose" and all(
            node.op_type == "MatMul"
            and node.input[1] == turned.output[0]
            and self._is_codes(node.input[0])
            for node in readers
        )

    def _is_codes(self, name: str) -> bool:
        """Whether a value is what a quantizer gives, and its codes fit into bytes."""
        while (node := self._maker.get(name)) is not None and node.op_type in _MOVES:
            name = node.input[0]
        if node is None or node.domain != MARKS:
            return False
        rule = self._rule(node)
        return not rule.is_sign and rule.low <= 0 <= rule.high <= rule.low + 255

    def _unpack(self, name: str, codes: WeightCodes) -> None:
        """A weight: its levels, times the scale; int8 (I, O) where a product takes that."""
        writer, scale = self._writer, (codes.scale * codes.integers()[1]).numpy()
        levels = add_integers(writer, codes)
        turned = [node.output[0] for node in self._readers[name]]
        for columns in self._in_integers.intersection(turned):
            self._columns(levels, scale.reshape(-1) if scale.ndim else scale, columns)
        if not self._in_integers.issuperset(turned):
            floats = writer.add("Cast", [levels], to=TensorProto.FLOAT)
            writer.add("Mul", [floats, writer.constant(scale)], name=name)

    def _columns(self, levels: str, scale: NDArray[np.float32], name: str) -> None:
        writer = self._writer
        small = writer.add("Cast", [levels], to=TensorProto.INT8)
        columns = writer.add("Transpose", [small], perm=[1, 0])
        zero = writer.constant(np.zeros(scale.shape, np.int8))
        axis = {"axis": 1} if scale.ndim else {}
        writer.add("DequantizeLinear", [columns, writer.constant(scale), zero], name=name, **axis)

    def _quantize(self, mark: onnx.NodeProto) -> None:
        """The staircase, step * clip(ceil(x / step - shift), low, high), or a sign."""
        writer, rule, x, name = self._writer, self._rule(mark), mark.input[0], mark.output[0]
        if rule.is_sign:
            axes = () if rule.shift.ndim == 0 else (-1, *(1,) * (_number(mark, "rank") - 2))
            threshold = writer.constant(rule.shift.float().view(axes).numpy())
            is_one = writer.add("GreaterOrEqual", [x, threshold])
            writer.add("Where", [is_one, writer.scalar(1.0), writer.scalar(-1.0)], name=name)
            return
        step = writer.scalar(rule.step)
        codes = writer.add("Div", [x, step])
        if float(rule.shift):
            codes = writer.add("Sub", [codes, writer.scalar(float(rule.shift))])
        codes = writer.add("Ceil", [codes])
        if any(self._is_product_in_integers(node) for node in self._behind(name)):
            zero, most = writer.scalar(-rule.low, np.uint8), rule.high - rule.low
            codes = writer.add("QuantizeLinear", [codes, writer.scalar(1.0), zero])
            if most < 255:  # below 0 there are no bytes
                codes = writer.add("Clip", [codes, "", writer.scalar(most, np.uint8)])
            writer.add("DequantizeLinear", [codes, step, zero], name=name)
        else:
            ends = [writer.scalar(rule.low), writer.scalar(rule.high)]
            writer.add("Mul", [writer.add("Clip", [codes, *ends]), step], name=name)

    def _is_product_in_integers(self, node: onnx.NodeProto) -> bool:
        return node.op_type == "MatMul" and node.input[1] in self._in_integers

    def _behind(self, name: str) -> Iterator[onnx.NodeProto]:
        """The nodes that read a value, moved or as it is."""
        for node in self._readers[name]:
            yield node
            if node.op_type in _MOVES:
                yield from self._behind(node.output[0])

    def _rule(self, mark: onnx.NodeProto) -> CodeRule:
        return self._rules[_number(mark, "number")][1]

    def _called(self, mark: onnx.NodeProto, taken: set[str]) -> str:
        """The name of a quantizer's value; later calls of the same one are numbered."""
        name = f"quantized({self._rules[_number(mark, 'number')][0]})"
        return next(n for n in chain([name], (f"{name}{i}" for i in count(2))) if n not in taken)


def _number(mark: onnx.NodeProto, name: str) -> int:
    return int(next(attribute.i for attribute in mark.attribute if attribute.name == name))
