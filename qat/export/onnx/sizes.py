"""Sizes of the values of an ONNX model, found without running it."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qat.errors import CheckpointError

# of one value, for one image: eighty times the largest of ResNet-18 on 224 pixels
_MOST_VALUES = 2**26
# what a graph reckons sizes with: nothing that makes more numbers than it is given
_RECKONS = frozenset(
    {
        *("Add", "Cast", "Concat", "Constant", "Div", "Gather", "Identity", "Mul", "Neg"),
        *("Reshape", "Shape", "Slice", "Squeeze", "Sub", "Unsqueeze"),
    }
)
_FEW = 64  # numbers in a value of these


def check_sizes(model: Any, origin: str) -> None:
    """Refuse a model with a value of unknown size, or of more numbers than any network has.

    A file of a kilobyte can pad, or convolve over, an image to any size. A value may always hold
    as many numbers as the file has bits, as weights are unpacked from these.

    onnx infers the shape of each node; what shapes are reckoned with (the number of images is 1) is
    reckoned on the way. onnx's own way (data_prop) takes a time quadratic in the number of nodes,
    and follows such a value through few operators.

    Args:
        model: `onnx.ModelProto`.
        origin: names it in messages.

    Raises:
        CheckpointError: there is such a value.
        Exception: of onnx, where the shapes of an operator do not fit together.
    """
    from onnx import defs, numpy_helper, shape_inference

    most = max(_MOST_VALUES, 8 * model.ByteSize())
    opsets = list(model.opset_import)
    types, numbers = _given_types(model.graph), _given_numbers(model.graph)
    for node in model.graph.node:
        given = [name for name in node.input if name]
        types |= shape_inference.infer_node_outputs(
            defs.get_schema(node.op_type, opsets[0].version),
            node,
            {name: types[name] for name in given},
            {name: numpy_helper.from_array(numbers[name]) for name in given if name in numbers},
            opset_imports=opsets,
        )
        for name in filter(None, node.output):
            if not 0 < _size(types.get(name)) <= most:
                raise CheckpointError(
                    f"{origin}: {name!r:.50} would hold more than {most:,} values of an image, "
                    "or an unknown number; export it again"
                )
        if node.op_type in _RECKONS and _size(types[node.output[0]]) <= _FEW:
            _reckon(node, types, numbers)


def _reckon(node: Any, types: dict[str, Any], numbers: dict[str, NDArray[Any]]) -> None:
    """Add what a node makes of known numbers to these."""
    from onnx.reference import ReferenceEvaluator

    known: dict[str, Any] = {name: numbers[name] for name in node.input if name in numbers}
    if node.op_type == "Shape":
        known = {node.input[0]: np.broadcast_to(0, _shape(types[node.input[0]]))}  # no memory
    if known.keys() >= set(filter(None, node.input)):
        with np.errstate(all="ignore", divide="raise"):
            (value,) = ReferenceEvaluator(node).run(None, known)
        numbers[node.output[0]] = np.asarray(value)


def _given_types(graph: Any) -> dict[str, Any]:
    """Name of each input, of one image, and of each constant -> its type."""
    from onnx import TypeProto, helper

    types: dict[str, TypeProto] = {}
    for value in graph.input:
        types[value.name] = image = TypeProto.FromString(value.type.SerializeToString())
        if len(image.tensor_type.shape.dim):
            image.tensor_type.shape.dim[0].dim_value = 1
    for tensor in graph.initializer:
        types[tensor.name] = helper.make_tensor_type_proto(tensor.data_type, list(tensor.dims))
    return types


def _given_numbers(graph: Any) -> dict[str, NDArray[Any]]:
    """Name of each small constant -> its numbers."""
    from onnx import numpy_helper

    return {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in graph.initializer
        if math.prod(tensor.dims) <= _FEW
    }


def _shape(kind: Any) -> list[int]:
    """The shape of a type; 0 stands for an unknown length, also of a tensor of unknown rank."""
    if kind is None or not kind.tensor_type.HasField("shape"):
        return [0]
    return [dim.dim_value for dim in kind.tensor_type.shape.dim]


def _size(kind: Any) -> int:
    """The number of numbers in a value; 0 if it is unknown."""
    return math.prod(_shape(kind))
