"""Sizes of the values of an ONNX model, found without running it.

onnx infers the type and shape of each node's values. The few integers that shapes are made of, such
as the number of images times that of windows, are reckoned on the way, which onnx does for few
operators and in a time quadratic in the number of nodes.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qat.errors import CheckpointError

# numbers that are held at a time for each image: eighty times the largest value of ResNet-18 on
# 224 pixels
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
        self._most_constant = max(_MOST, _STEPS_PER_WEIGHT * 8 * model.ByteSize())

    def check(self, images: int) -> None:
        """Refuse a model that holds more numbers than a network of such images does.

        A file of a kilobyte can pad, or convolve over, an image to any size. Counted are the values
        that something is still to read; those without the image, which a runtime makes when it
        opens the file and keeps, all together: weights, unpacked from the bits of the file.

        Raises:
            CheckpointError: too many numbers, a value of unknown size, of texts, or a division by
                what may be no positive number, which ends the process.
            Exception: of onnx, where the shapes of an operator do not fit together.
        """
        types = {**self._constants, self._image.name: _batch(self._image.type, images)}
        known, most = dict(self._known), images * _MOST
        held = _Held(self._nodes, self._outputs, self._image.name, _size(types[self._image.name]))
        for node in self._nodes:
            if _is_deadly(node, types, known):
                self._refuse(node.output[0], "divides integers by what may be no positive number")
            types |= self._inferred(node, types, known)
            made = {name: _size(types.get(name)) for name in node.output if name}
            held.add(node, made)
            complaints = {
                "would be of unknown size, or of texts": not all(made.values()),
                "would look through too large windows": _windows(node, types) > 8 * most,
                f"would hold more than {most:,} numbers, with others": held.with_image > most,
                "would hold more numbers than the file": held.without_image > self._most_constant,
            }
            if why := next((why for why, holds in complaints.items() if holds), None):
                self._refuse(next(iter(made)), why)
            held.drop(node)
            if (value := _reckoned(node, types, known)) is not None:
                known[node.output[0]] = value
        for value in self._outputs:  # a runtime believes what is told of them
            told = [dim.dim_value for dim in value.type.tensor_type.shape.dim[1:]]
            if told != _shape(types[value.name])[1:]:
                self._refuse(value.name, f"is told to be {told} for each image, and is not")

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

    def _refuse(self, name: str, why: str) -> None:
        raise CheckpointError(f"{self._origin}: {name!r:.50} {why}; {self._cure}")


class _Held:
    """The numbers that a runtime holds at a time, node by node.

    Attributes:
        with_image: of values that hang on the image and are still to be read.
        without_image: of all others, which are made once and kept.
    """

    def __init__(self, nodes: Sequence[Any], outputs: Sequence[Any], image: str, size: int) -> None:
        self.with_image, self.without_image = size, 0
        self._sizes = {image: size}
        self._readers = Counter(name for node in nodes for name in node.input)
        self._readers.update(value.name for value in outputs)

    def add(self, node: Any, made: Mapping[str, int]) -> None:
        """What a node makes."""
        if any(name in self._sizes for name in node.input):
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
    """Integers by 0, or the least one by -1, end the process of a runtime."""
    if node.op_type not in ("Div", "Mod") or not _is_integer(types[node.input[0]]):
        return False
    divisor = known.get(node.input[1])
    return divisor is None or not (divisor > 0).all()


def _windows(node: Any, types: Mapping[str, Any]) -> int:
    """Numbers in the windows of a convolution, side by side; a transposed one makes its windows."""
    if node.op_type not in ("Conv", "ConvTranspose", "QLinearConv"):
        return 0
    weight = _shape(types[node.input[3 if node.op_type == "QLinearConv" else 1]])
    image = _shape(types[node.input[0] if node.op_type == "ConvTranspose" else node.output[0]])
    return math.prod(weight[1:]) * math.prod(image[:1] + image[2:])


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
        return np.array(lengths[own.get("start", 0) : own.get("end", len(lengths))], np.int64)
    if node.op_type == "Constant" and "value" in own:
        return numpy_helper.to_array(own["value"])
    given = [known.get(name) for name in node.input]
    if node.op_type not in _INTEGERS or any(x is None or x.dtype.kind != "i" for x in given):
        return None
    # Python's integers do not overflow
    value = _INTEGERS[node.op_type](own, shape, *(x.astype(object) for x in given if x is not None))
    is_exact = value is not None and all(abs(number) < _EXACT for number in np.ravel(value))
    if not is_exact or np.shape(value) != tuple(shape):
        return None
    return np.array(value, np.int64)


def _divided(own: Any, shape: Any, a: Any, b: Any) -> Any:
    return a // b if np.all(a >= 0) and np.all(b > 0) else None  # others are rounded otherwise


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
    "Concat": lambda own, shape, *parts: np.concatenate(parts),
    "Div": _divided,
    "Gather": _gathered,
    "Identity": _shaped,
    "Mul": lambda own, shape, a, b: a * b,
    "Reshape": _shaped,
    "Slice": _sliced,
    "Squeeze": _shaped,
    "Sub": lambda own, shape, a, b: a - b,
    "Unsqueeze": _shaped,
}
