"""Sizes of the values of an ONNX model, found without running it.

onnx infers the type and shape of each node's values. The few integers that shapes are made of, such
as the number of images times that of windows, are reckoned on the way, which onnx does for few
operators and in a time quadratic in the number of nodes.
"""

import math
from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qat.errors import CheckpointError

# numbers that may be held at a time for each image; the largest value of ResNet-18 on 224 pixels
# has 800,000
_MOST = 2**26
_STEPS_PER_WEIGHT = 16  # values that a packed weight passes through
_FEW = 64  # numbers in a value that a shape is made of
_EXACT = 2**53
_Integers = NDArray[np.int64]


class Sizes:
    """The sizes of a model's values for any number of images.

    Args:
        model: `onnx.ModelProto` of one input with a batch axis, and of one set of operators.
        origin: names it in messages.
        cure: ends them.
    """

    def __init__(self, model: Any, origin: str, cure: str) -> None:
        graph = model.graph
        self._origin, self._cure, self._opsets = origin, cure, list(model.opset_import)
        self._nodes, self._outputs = list(graph.node), list(graph.output)
        self._image, self._constants = graph.input[0], _types_of(graph.initializer)
        self._known = _small_constants(graph.initializer)
        stored = sum(tensor.ByteSize() for tensor in graph.initializer)
        self._most_constant = max(_MOST, _STEPS_PER_WEIGHT * 8 * stored)

    def check(self, images: int) -> None:
        """Refuse a model that holds more numbers than a network of such images does.

        A file of a kilobyte can pad, or convolve over, an image to any size. Counted are the values
        that something is still to read, in the order of the file and in a runtime's own; those
        without the image, which a runtime makes when it opens the file and keeps, all together:
        weights, unpacked from the bits of the file. What an operator needs inside may be eight
        times as much.

        Raises:
            CheckpointError: too many numbers, a value of unknown size, of texts, or a division by
                what may be 0 or -1, which can end the process.
            Exception: of onnx, where the shapes of an operator do not fit together.
        """
        types = {**self._constants, self._image.name: _batch(self._image.type, images)}
        known, most = dict(self._known), images * _MOST
        made = [self._made(node, types, known, 8 * most) for node in self._nodes]
        image = {self._image.name: _size(types[self._image.name])}
        for order in (range(len(self._nodes)), _depth_first(self._nodes)):
            held = _Held(self._nodes, self._outputs, image)
            for number in order:
                node = self._nodes[number]
                held.add(node, made[number], known)
                if held.with_image > most:
                    self._refuse(made[number], f"would hold more than {most:,} numbers with others")
                if held.without_image > self._most_constant:
                    self._refuse(made[number], "would hold more numbers than the file")
                held.drop(node)
        for value in self._outputs:  # a runtime believes what is told of them
            told = [dim.dim_value for dim in value.type.tensor_type.shape.dim[1:]]
            if told != _shape(types[value.name])[1:]:
                self._refuse([value.name], f"is told to be {told} for each image, and is not")

    def _made(
        self, node: Any, types: dict[str, Any], known: dict[str, NDArray[Any]], most: int
    ) -> dict[str, int]:
        """Name of each value of a node -> its size; its types and integers are added to the others.

        Args:
            node: whose inputs have types.
            types: of all values so far.
            known: integers so far.
            most: numbers that an operator may need inside.
        """
        if _is_deadly(node, types, known):
            self._refuse(node.output, "divides integers by what may be 0 or -1")
        types |= self._inferred(node, types, known)
        made = {name: _size(types.get(name)) for name in node.output if name}
        if not all(made.values()):
            self._refuse(made, "would be of unknown size, or of texts")
        if (inside := _inside(node, types)) > most:
            self._refuse(made, f"would need {inside:,} numbers to be found")
        if (value := _reckoned(node, types, known)) is not None:
            known[node.output[0]] = value
        return made

    def _inferred(
        self, node: Any, types: Mapping[str, Any], known: Mapping[str, NDArray[Any]]
    ) -> dict[str, Any]:
        """The types of a node's values."""
        from onnx import defs, numpy_helper, shape_inference

        given = [name for name in node.input if name]
        return shape_inference.infer_node_outputs(
            defs.get_schema(node.op_type, self._opsets[0].version),
            node,
            {name: types[name] for name in given},
            {name: numpy_helper.from_array(known[name]) for name in given if name in known},
            opset_imports=self._opsets,
        )

    def _refuse(self, names: Iterable[str], why: str) -> None:
        raise CheckpointError(f"{self._origin}: {next(iter(names))!r:.50} {why}; {self._cure}")


class _Held:
    """The numbers that a runtime holds at a time, node by node.

    Attributes:
        with_image: of values that hang on the image and are still to be read.
        without_image: of all others, which are made once and kept.
    """

    def __init__(
        self, nodes: Sequence[Any], outputs: Sequence[Any], image: Mapping[str, int]
    ) -> None:
        self.with_image, self.without_image = sum(image.values()), 0
        self._sizes = dict(image)
        self._readers = Counter(name for node in nodes for name in node.input)
        self._readers.update(value.name for value in outputs)

    def add(self, node: Any, made: Mapping[str, int], known: Container[str]) -> None:
        """What a node makes; of known integers alone a runtime makes it for good."""
        if any(name in self._sizes and name not in known for name in node.input):
            self._sizes |= made
            self.with_image += sum(made.values())
        else:
            self.without_image += sum(made.values())

    def drop(self, node: Any) -> None:
        """What nothing is to read after this node."""
        self._readers.subtract(node.input)
        for name in {*node.input, *node.output} & self._sizes.keys():
            if self._readers[name] <= 0:
                self.with_image -= self._sizes[name]
                self._sizes[name] = 0


def _depth_first(nodes: Sequence[Any]) -> list[int]:
    """The nodes' numbers in the order of onnxruntime: from the ends, what each one reads first."""
    maker = {name: number for number, node in enumerate(nodes) for name in node.output if name}
    reads = [sorted({maker[name] for name in node.input if name in maker}) for node in nodes]
    read = {number for numbers in reads for number in numbers}
    waiting = [(number, False) for number in range(len(nodes)) if number not in read]
    order, seen = [], set()
    while waiting:
        number, is_ready = waiting.pop()
        if is_ready:
            order.append(number)
        elif number not in seen:
            seen.add(number)
            waiting += [(number, True), *((before, False) for before in reads[number])]
    return order


def _types_of(tensors: Sequence[Any]) -> dict[str, Any]:
    """Name of each constant -> its type."""
    from onnx import helper

    return {t.name: helper.make_tensor_type_proto(t.data_type, list(t.dims)) for t in tensors}


def _small_constants(tensors: Sequence[Any]) -> dict[str, NDArray[Any]]:
    """Name of each small constant -> its numbers: integers of shapes, the scales of a Resize."""
    from onnx import numpy_helper

    return {t.name: numpy_helper.to_array(t) for t in tensors if math.prod(t.dims) <= _FEW}


def _batch(kind: Any, images: int) -> Any:
    """The type of this number of images."""
    batch = type(kind).FromString(kind.SerializeToString())
    batch.tensor_type.shape.dim[0].dim_value = images
    return batch


def _shape(kind: Any) -> list[int]:
    """The shape of a type; [0] for an unknown one, of unknown lengths and of texts."""
    from onnx import TensorProto

    tensor = kind.tensor_type if kind is not None else None
    if tensor is None or not tensor.HasField("shape") or tensor.elem_type == TensorProto.STRING:
        return [0]
    return [dim.dim_value if dim.dim_value > 0 else 0 for dim in tensor.shape.dim]


def _size(kind: Any) -> int:
    """The number of numbers in a value; 0 if it is unknown."""
    return math.prod(_shape(kind))


def _is_integer(kind: Any) -> bool:
    from onnx import TensorProto

    floats = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)
    return kind.tensor_type.elem_type not in floats


def _is_deadly(node: Any, types: Mapping[str, Any], known: Mapping[str, NDArray[Any]]) -> bool:
    """Whether it divides integers by what may be 0, or the least by -1, which ends the process."""
    if node.op_type not in ("Div", "Mod") or not _is_integer(types[node.input[0]]):
        return False
    divisor = known.get(node.input[1])
    return divisor is None or bool(np.isin(divisor, (0, -1)).any())


def _inside(node: Any, types: Mapping[str, Any]) -> int:
    """Numbers that an operator needs for itself, beside what it is given and makes."""
    from onnx import helper

    kind = node.op_type
    if kind not in ("Conv", "ConvTranspose", "LRN", "LSTM", "GRU", "RNN"):
        return 0
    image = _shape(types[node.input[0]])
    if kind == "LRN":
        window = next(helper.get_attribute_value(a) for a in node.attribute if a.name == "size")
        return int(image[1] + abs(window)) * math.prod(image[:1] + image[2:])
    weight = _shape(types[node.input[1]])
    if kind in ("LSTM", "GRU", "RNN"):  # of each step, gates (directions, N, 4 * hidden)
        return 2 * math.prod(weight[:2]) * math.prod(image[:2])
    # windows side by side, in front of the one, behind the other
    places = image if kind == "ConvTranspose" else _shape(types[node.output[0]])
    return math.prod(weight[1:]) * math.prod(places[:1] + places[2:])


def _reckoned(
    node: Any, types: Mapping[str, Any], known: Mapping[str, NDArray[Any]]
) -> _Integers | None:
    """The integers that a node makes of known ones; None if it is of no kind that shapes need."""
    from onnx import TensorProto, helper, numpy_helper

    kind, shape = types[node.output[0]], _shape(types[node.output[0]])
    if kind.tensor_type.elem_type != TensorProto.INT64 or _size(kind) > _FEW:
        return None
    own = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    if node.op_type == "Shape":
        lengths = _shape(types[node.input[0]])
        if not all(lengths):
            return None
        return np.array(lengths[own.get("start", 0) : own.get("end", len(lengths))], np.int64)
    if node.op_type == "Constant" and "value" in own:
        return numpy_helper.to_array(own["value"])
    given = [known.get(name) for name in node.input]
    if node.op_type not in _INTEGERS or any(x is None or x.dtype.kind != "i" for x in given):
        return None
    exact = [x.astype(object) for x in given if x is not None]  # Python's integers do not overflow
    try:
        value = _INTEGERS[node.op_type](own, shape, *exact)
    except (ValueError, TypeError, IndexError):  # more inputs, or others, than ours have
        return None
    is_exact = value is not None and all(abs(number) < _EXACT for number in np.ravel(value))
    if not is_exact or np.shape(value) != tuple(shape):
        return None
    return np.array(value, np.int64)


def _divided(own: Any, shape: Any, a: Any, b: Any) -> Any:
    """Towards 0, as C does."""
    return (abs(a) // abs(b)) * np.where((a < 0) == (b < 0), 1, -1)


def _gathered(own: Any, shape: Any, a: Any, places: Any) -> Any:
    inside = a.ndim == 1 and np.all((places >= 0) & (places < len(a)))
    return a[np.asarray(places, np.int64)] if inside else None


def _sliced(own: Any, shape: Any, a: Any, start: Any, end: Any, *more: Any) -> Any:
    plain = zip((a.ndim, len(start), *(int(x[0]) for x in more)), (1, 1, 0, 1), strict=False)
    return a[start[0] : end[0]] if all(x == y for x, y in plain) else None


def _shaped(own: Any, shape: Any, a: Any, *_: Any) -> Any:
    return a.reshape(shape)


# what a node's attributes, the shape of its value and its inputs make; None if it is not known
_INTEGERS: dict[str, Callable[..., Any]] = {
    "Add": lambda own, shape, a, b: a + b,
    "Cast": _shaped,
    "Concat": lambda own, shape, *parts: np.concatenate(parts, own["axis"]),
    "Div": _divided,
    "Gather": _gathered,
    "Identity": _shaped,
    "Mul": lambda own, shape, a, b: a * b,
    "Neg": lambda own, shape, a: -a,
    "Reshape": _shaped,
    "Slice": _sliced,
    "Squeeze": _shaped,
    "Sub": lambda own, shape, a, b: a - b,
    "Unsqueeze": _shaped,
}
