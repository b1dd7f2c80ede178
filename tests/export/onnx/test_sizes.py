"""Sizes found without running a file, held against a runtime and against counts by hand."""

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from qat.errors import CheckpointError
from qat.export.onnx import sizes
from qat.export.onnx.allowed import OPSET
from qat.export.onnx.sizes import Sizes

OPSETS = [helper.make_opsetid("", OPSET)]
INT64 = TensorProto.INT64


def session(model):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(model.SerializeToString(), options)


def graph_of(nodes, constants, output):
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 8, 8])
    graph = helper.make_graph(nodes, "small", [image], [output], initializers)
    return helper.make_model(graph, opset_imports=OPSETS, ir_version=9)


def joined():
    """Relu, Relu, both joined, flat: at most 2 maps and 2 more, side by side."""
    nodes = [
        helper.make_node("Relu", ["image"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Concat", ["a", "b"], ["c"], axis=1),
        helper.make_node("Flatten", ["c"], ["logits"]),
    ]
    return nodes, helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 384])


@pytest.mark.parametrize("images", [1, 5])
def test_what_is_held_at_a_time_is_counted(images, monkeypatch):
    nodes, logits = joined()
    model = graph_of(nodes, {}, logits)
    monkeypatch.setattr(sizes, "_MOST", 4 * 192)
    Sizes(model, "file", "").check(images)
    monkeypatch.setattr(sizes, "_MOST", 4 * 192 - 1)
    with pytest.raises(CheckpointError, match=r"^file: 'c' would hold more than"):
        Sizes(model, "file", "do this").check(images)


def test_a_value_that_is_read_late_is_held_until_then(monkeypatch):
    nodes, _ = joined()
    nodes.append(helper.make_node("ReduceSum", ["logits", "axes"], ["sum"], keepdims=1))
    nodes.append(helper.make_node("Mul", ["sum", "image_sum"], ["answer"]))
    nodes.insert(0, helper.make_node("ReduceSum", ["image", "all"], ["image_sum"], keepdims=0))
    model = graph_of(
        nodes, {"axes": np.array([1]), "all": np.array([1, 2, 3])},
        helper.make_tensor_value_info("answer", TensorProto.FLOAT, ["batch", 1]),
    )  # fmt: skip
    # a runtime sums the image up last, and holds it beside all three
    monkeypatch.setattr(sizes, "_MOST", 5 * 192)
    Sizes(model, "file", "").check(1)
    monkeypatch.setattr(sizes, "_MOST", 5 * 192 - 1)
    with pytest.raises(CheckpointError):
        Sizes(model, "file", "").check(1)


def draws():
    """Operators on small integers of either sign, as a shape is reckoned with."""
    rng = np.random.default_rng(0)

    def some(*shape):
        return rng.integers(-9, 10, shape)

    for _ in range(12):
        n = int(rng.integers(1, 6))
        yield "Add", [some(n), some(n)], {}
        yield "Add", [some(n), some()], {}
        yield "Sub", [some(n), some(1)], {}
        yield "Mul", [some(n), some(n)], {}
        yield "Div", [some(n), rng.integers(1, 9, n)], {}
        yield "Div", [abs(some(n)), rng.integers(1, 9, n)], {}
        yield "Concat", [some(n), some(2)], {"axis": 0}
        yield "Concat", [some(2, n), some(2, 3)], {"axis": 1}
        yield "Neg", [some(n)], {}
        yield "Div", [some(n), -rng.integers(2, 9, n)], {}
        yield "Shape", [some(n, 2, 3)], {}
        yield "Shape", [some(n, 2, 3)], {"start": 1}
        yield "Shape", [some(n, 2, 3)], {"start": -2, "end": -1}
        yield "Gather", [some(n), rng.integers(-n, n, ())], {}
        yield "Gather", [some(n), rng.integers(0, n, 2)], {"axis": 0}
        yield "Gather", [some(n, 2), rng.integers(0, n, 2)], {"axis": 0}
        yield "Identity", [some(n)], {}
        yield "Cast", [some(n).astype(np.int32)], {"to": INT64}
        yield "Reshape", [some(n), np.array([1, -1])], {}
        yield "Reshape", [some(1), np.array([], np.int64)], {}
        yield "Unsqueeze", [some(n), np.array([0])], {}
        yield "Squeeze", [some(1), np.array([0])], {}
        yield "Squeeze", [some(1)], {}
        yield "Slice", [some(6), *(some(1) for _ in range(2)), np.array([0])], {}
        yield "Slice", [some(6), some(1), some(1), np.array([0]), np.array([2])], {}
        yield "Slice", [some(6), np.array([1]), np.array([2**63 - 1])], {}


def test_shapes_are_reckoned_as_a_runtime_does():
    reckoned = Counter()
    for kind, values, attributes in draws():
        names = [f"x{number}" for number in range(len(values))]
        node = helper.make_node(kind, names, ["y"], **attributes)
        known = dict(zip(names, map(np.asarray, values), strict=True))
        model = graph_of([node], known, onnx.ValueInfoProto(name="y"))
        (expected,) = session(model).run(["y"], {"image": np.zeros((1, 3, 8, 8), np.float32)})
        types = sizes._types_of(model.graph.initializer)
        finder = Sizes(model, "file", "")
        types |= finder._inferred(node, types, known)
        found = sizes._reckoned(node, types, known)
        if found is not None:
            reckoned[kind] += 1
            assert found.dtype == expected.dtype
            assert found.shape == expected.shape
            assert np.array_equal(found, expected), (kind, values)
    assert reckoned.keys() == sizes._INTEGERS.keys() | {"Shape"}
    assert min(reckoned.values()) >= 12


def test_products_beyond_exact_integers_are_not_known():
    node = helper.make_node("Mul", ["a", "b"], ["y"])
    for a, b in ((2**62, 4), (2**31, 2**23), (-(2**40), 2**40)):
        known = {"a": np.array([a]), "b": np.array([b])}
        model = graph_of([node], known, onnx.ValueInfoProto(name="y"))
        types = sizes._types_of(model.graph.initializer)
        types |= Sizes(model, "file", "")._inferred(node, types, known)
        assert sizes._reckoned(node, types, known) is None


def test_weights_may_be_unpacked_from_the_bits_of_the_file(monkeypatch):
    """What the file holds as bits is a number each, in each step of its unpacking; not more."""
    monkeypatch.setattr(sizes, "_MOST", 1000)
    packed = {"w": np.zeros(2000, np.uint8), "axes": np.array([1]), "all": np.array([2000, 8])}
    nodes, logits = joined()
    nodes = [
        helper.make_node("Unsqueeze", ["w", "axes"], ["column"]),
        helper.make_node("Expand", ["column", "all"], ["bits"]), *nodes,
    ]  # fmt: skip
    Sizes(graph_of(nodes, packed, logits), "file", "").check(1)
    packed["all"] = np.array([200, 2000, 8])
    with pytest.raises(CheckpointError, match="'bits' would hold more numbers than the file"):
        Sizes(graph_of(nodes, packed, logits), "file", "").check(1)
