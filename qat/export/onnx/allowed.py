"""What an ONNX file of ours may hold: whatever another one would do is not run."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from qat.errors import CheckpointError
from qat.export.onnx.sizes import Sizes
from qat.storage.reading import parsing

OPSET = 18  # the first with BitwiseAnd, which unpacks weights
# all that the faithful and the fast form consist of
_PLAIN = frozenset(
    {
        *("Add", "AveragePool", "BitShift", "BitwiseAnd", "Cast", "Clip", "Concat", "Conv"),
        *("DequantizeLinear", "Flatten", "Gather", "Gemm", "GlobalAveragePool", "GreaterOrEqual"),
        *("Identity", "MaxPool", "Mul", "Pad", "QuantizeLinear", "ReduceSum", "Relu", "Reshape"),
        *("Slice", "Sub", "Where"),
    }
)
# what PyTorch writes for other networks; nothing that loops, branches or draws numbers, nor what
# may hold more than it is given and gives (Einsum)
_GENERAL = frozenset(
    {
        *("Abs", "And", "ArgMax", "BatchNormalization", "CastLike", "Ceil", "Constant"),
        *("ConstantOfShape", "ConvTranspose", "Cos", "CumSum", "DepthToSpace", "Div"),
        *("Elu", "Equal", "Erf", "Exp", "Expand", "Floor", "GRU", "GatherElements", "GatherND"),
        *("GlobalMaxPool", "Greater", "GroupNormalization", "HardSigmoid", "HardSwish", "IsNaN"),
        *("InstanceNormalization", "LRN", "LSTM", "LayerNormalization", "LeakyRelu", "Less"),
        *("LessOrEqual", "Log", "LogSoftmax", "MatMul", "Max", "Mean", "Min", "Mish", "Mod", "Neg"),
        *("Not", "Or", "PRelu", "Pow", "RNN", "Range", "Reciprocal", "ReduceL1", "ReduceL2"),
        *("ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSumSquare", "Resize"),
        *("Round", "ScatterElements", "ScatterND", "Selu", "Shape", "Sigmoid", "Sign", "Sin"),
        *("Size", "Softmax", "Softplus", "SpaceToDepth", "Split", "Sqrt", "Squeeze", "Sum"),
        *("Tanh", "Tile", "TopK", "Transpose", "Trilu", "Unsqueeze", "Xor"),
    }
)
# a file with another one is none of ours and is not run
OPERATORS = _PLAIN | _GENERAL
# of attributes; no graph, no sparse tensor, no type
_ATTRIBUTES = frozenset((1, 2, 3, 4, 6, 7, 8))  # FLOAT, INT, STRING, TENSOR, FLOATS, INTS, STRINGS


def checked_model(data: bytes, origin: str, cure: str) -> Sizes:
    """Refuse a file that reads others, has operators that ours have not, or grows.

    Args:
        data: the file.
        origin: names it in messages.
        cure: ends them.

    Returns:
        What finds the sizes of its values; those for one image are checked.

    Raises:
        CheckpointError: one line.
    """
    import onnx

    if data[4:8] == b"ORTM":  # onnxruntime's own format, which it would take it for
        raise CheckpointError(f"{origin} is no ONNX file; {cure}")
    with parsing(origin, cure):
        model = onnx.load_model_from_string(data)
        for rule in _RULES:
            if complaint := rule(model):
                raise CheckpointError(f"{origin} {complaint}; {cure}")
        sizes = Sizes(model, origin, cure)
        sizes.check(1)
    return sizes


def _graph(model: Any) -> str:
    return "" if model.graph.node else "is no ONNX file"


def _other_files(model: Any) -> str:
    from onnx import external_data_helper

    tensors = external_data_helper._get_all_tensors(model)
    if any(external_data_helper.uses_external_data(tensor) for tensor in tensors):
        return "reads weights from other files, which ours never do"
    return "has sparse weights, as none of ours has" if model.graph.sparse_initializer else ""


def _operators(model: Any) -> str:
    nodes = model.graph.node
    domains = {opset.domain for opset in model.opset_import} | {node.domain for node in nodes}
    if others := domains - {"", "ai.onnx"}:
        return f"has operators of {min(others)!r:.50}; format=qonnx is for other tools"
    if [opset.version for opset in model.opset_import] != [OPSET] or model.functions:
        return f"has operators of its own, or others than those of version {OPSET}"
    if strange := {node.op_type for node in nodes} - OPERATORS:
        return f"has the operator {min(strange)!r:.50}, as none of ours has"
    return "has attributes of a kind that ours never have" if any(map(_is_odd, nodes)) else ""


def _is_odd(node: Any) -> bool:
    """Whether readers of a node may see different attributes, or such as ours have not."""
    names = [attribute.name for attribute in node.attribute]
    return (
        len(names) != len(set(names))
        or (node.op_type == "Constant" and len(names) != 1)
        or any(name.startswith("__") for name in names)
        or any(a.type not in _ATTRIBUTES or a.ref_attr_name for a in node.attribute)
        # onnx and onnxruntime find other sizes with it
        or any(a.name == "auto_pad" and a.s not in (b"", b"NOTSET") for a in node.attribute)
    )


def _constants(model: Any) -> str:
    from onnx import helper

    for tensor in model.graph.initializer:
        width = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type)).itemsize
        if len(tensor.raw_data) != width * math.prod(tensor.dims):
            return f"has the constant {tensor.name!r:.50}, whose numbers are not all there"
    return ""


def _names(model: Any) -> str:
    graph = model.graph
    names = [value.name for value in (*graph.input, *graph.initializer)]
    names += [name for node in graph.node for name in node.output if name]
    return "calls two values by one name" if len(names) != len(set(names)) else ""


def _told_shapes(model: Any) -> str:
    """A runtime believes what a file tells of shapes."""
    graph = model.graph
    if graph.value_info:
        return "tells of shapes, which ours leave to be found"
    shapes = [value.type.tensor_type.shape.dim for value in (*graph.input, *graph.output)]
    is_batch = all(dims and not dims[0].HasField("dim_value") for dims in shapes)
    is_known = all(dim.dim_value > 0 for dims in shapes[:1] for dim in dims[1:])
    if [value.name for value in graph.input] != ["image"] or not (is_batch and is_known):
        return "takes other things than any number of images"
    return ""


_RULES: tuple[Callable[[Any], str], ...] = (
    *(_graph, _other_files, _operators, _constants, _names, _told_shapes),
)
