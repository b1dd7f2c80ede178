"""ONNX models of whole networks, run by onnxruntime, against the network in integers."""

import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from qat.export.integer.graph import Add, Layer, Quantize, pooled_first
from qat.export.integer.network import IntegerNetwork, as_codes
from qat.export.onnx.fast_steps import fast_steps, sum_steps
from qat.export.onnx.model import onnx_model, summands
from qat.export.onnx.moved_codes import onnx_moved_codes
from qat.export.onnx.run import optimised_operators
from qat.models.small import LeNet5, Vgg11
from qat.spec.quant import ActivationSpec, Override, QuantSpec, RuleSpec, WeightSpec
from support import environment
from support.exported import SPECS, exported, images, resnet8

IMAGES = images(32, seed=5)
# the levels of these lie so far apart that every sum of integers gives the network's code
EXACT = ("w1a4", "w2a4", "w4a4-channel", "w1a1", "w1a1-shift", "lsq", "dorefa", "power-of-two")
EXACT = (*EXACT, "input-bits", "ends-float")
FAST = ("w1a4", "w2a4", "w4a4-channel", "lsq", "dorefa", "power-of-two", "ends-float")


def run(model, x, *names):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    wanted = names or [output.name for output in session.get_outputs()]
    return dict(zip(wanted, session.run(list(wanted), {"image": x.numpy()}), strict=True))


def exposed_codes(graph, answers):
    """Name of each quantizer's node -> the codes that the ONNX model gives there."""
    network, found = IntegerNetwork(pooled_first(graph)), {}
    for node in network.graph:
        if isinstance(node, Quantize):
            rule = network.rules[node.name]
            zero = 1 if rule.is_sign else (0 if rule.low >= 0 else 128)
            codes = torch.from_numpy(answers[node.path]).double() - zero
            found[node.name] = as_codes(codes * rule.step, rule)
    return found


def moved(graph, given, x, behind):
    """Codes behind nodes of this kind that differ from the integers', given all other codes."""
    network = IntegerNetwork(pooled_first(graph))
    nodes = {node.name: node for node in network.graph}
    count = 0
    for name, theirs in given.items():
        if isinstance(nodes[nodes[name].inputs[0]], behind):
            others = {other: codes for other, codes in given.items() if other != name}
            ours = network.values(x, given=others)[name]
            count += int((ours.terms[0].integers != theirs.terms[0].integers).sum())
    return count


@pytest.fixture(scope="module")
def graphs():
    return {name: exported(resnet8, spec)[1] for name, spec in SPECS.items()}


@pytest.mark.parametrize("name", SPECS)
def test_the_faithful_form_is_the_network_in_integers(graphs, name):
    graph = graphs[name]
    answers = run(onnx_model(graph, exposed=True), IMAGES)
    given = exposed_codes(graph, answers)
    # 8-bit codes jump too densely, and pact's start of 10 leaves few sums in a step
    allowed = 2 if name in EXACT else 64
    assert moved(graph, given, IMAGES, Layer) <= allowed
    assert moved(graph, given, IMAGES, Add) <= 2
    if name in EXACT:
        expected = IntegerNetwork(graph)(IMAGES)
        torch.testing.assert_close(torch.from_numpy(answers["logits"]), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", FAST)
def test_integer_layers_of_the_fast_form_are_exact_behind_their_codes(graphs, name):
    graph = graphs[name]
    steps = sum_steps(graph, [images(16, seed=9)])
    assert set(steps) == {layer.name for layer in summands(graph)}
    given = exposed_codes(graph, run(onnx_model(graph, steps=steps, exposed=True), IMAGES))
    assert moved(graph, given, IMAGES, Layer) <= 2
    # rounding a summand to 256 steps moves one code in twenty at most
    sums = sum(given[n.name].terms[0].integers.numel() for n in graph if isinstance(n, Quantize))
    assert 0 < moved(graph, given, IMAGES, Add) < sums / 20


@pytest.mark.parametrize("name", ["w1a4", "w4a4-channel"])
def test_operators_that_onnxruntime_runs(graphs, name, tmp_path):
    graph = graphs[name]
    fast = onnx_model(graph, steps=sum_steps(graph, [images(4)]))
    found = optimised_operators(fast.SerializeToString(), tmp_path)
    # seven convolutions, three of them in front of sums; the first one sees the float image
    assert (found["Conv"], found["QLinearConv"], found["QLinearAdd"]) == (1, 6, 3)
    assert found["Add"] == 0
    faithful = onnx_model(graph)
    found = optimised_operators(faithful.SerializeToString(), tmp_path)
    assert (found["Conv"], found["QLinearConv"], found["QLinearAdd"]) == (4, 3, 0)
    assert found["BitShift"] == found["BitwiseAnd"] == found["Gather"] == 0  # folded at load


def test_the_fast_form_takes_the_image_in_bytes_where_the_first_layer_is_integer(graphs, tmp_path):
    example = images(4)
    for name, convs in (("w1a4", 0), ("ends-float", 1), ("w1a1", 7)):
        graph = graphs[name]
        steps = fast_steps(graph, [example])
        assert (graph[0].name in steps) == (convs == 0)
        found = optimised_operators(onnx_model(graph, steps=steps).SerializeToString(), tmp_path)
        assert (found["Conv"], found["QLinearConv"]) == (convs, 7 - convs)
    graph = graphs["w1a4"]
    steps = fast_steps(graph, [example])
    assert steps[graph[0].name] == pytest.approx(float(example.abs().max()) / 127)
    # the same as a network that quantizes its image itself, but for the sums
    rounded = (example / steps[graph[0].name]).round() * steps[graph[0].name]
    first = next(node for node in graph if isinstance(node, Quantize))
    found = run(onnx_model(graph, steps=steps, exposed=True), example)[first.path]
    wanted = IntegerNetwork(graph).codes(rounded)[first.path]
    assert float((torch.from_numpy(found).int() != wanted).double().mean()) < 1e-3


def test_with_an_image_in_codes_every_convolution_is_one_of_integers(graphs, tmp_path):
    graph = graphs["input-bits"]
    model = onnx_model(graph, steps=sum_steps(graph, [images(4)]))
    found = optimised_operators(model.SerializeToString(), tmp_path)
    assert (found["Conv"], found["QLinearConv"]) == (0, 7)


FLOAT_MIDDLE = {
    "float-layer": QuantSpec(overrides=(Override(match="layer1.0.conv1", weight={"bits": 32}),)),
    "powers-of-two-5": QuantSpec(weight=WeightSpec(bits=5, grid="power_of_two")),
    "dorefa-8": QuantSpec(
        rule=RuleSpec(name="float_only"), weight=WeightSpec(method="dorefa", bits=8)
    ),
}


@pytest.mark.parametrize("name", FLOAT_MIDDLE)
def test_float_layers_between_codes_stay_float(name, tmp_path):
    """onnxruntime would quantize them on a grid of its own if they looked as if it should."""
    graph = exported(resnet8, FLOAT_MIDDLE[name])[1]
    moved_, total = map(sum, zip(*onnx_moved_codes(graph, IMAGES).values(), strict=True))
    assert moved_ <= total / 10_000
    found = optimised_operators(onnx_model(graph).SerializeToString(), tmp_path)
    layers = 7  # of resnet8
    floats = layers if name != "float-layer" else 5
    assert (found["Conv"], found["QLinearConv"]) == (floats, layers - floats)


@pytest.mark.parametrize("name", ["w1a4", "w1a1-shift", "w1a32"])
@pytest.mark.parametrize("batch", [1, 3, 8])
def test_any_batch(graphs, name, batch):
    found = run(onnx_model(graphs[name]), IMAGES[:batch])["logits"]
    whole = run(onnx_model(graphs[name]), IMAGES)["logits"]
    np.testing.assert_allclose(found, whole[:batch], rtol=0, atol=1e-5)
    assert found.shape == (batch, 5)


@pytest.mark.parametrize("name", ["w1a4", "w4a4-channel", "input-bits", "w1a1"])
def test_another_evaluator_gives_the_same_predictions(graphs, name):
    model = onnx_model(graphs[name])
    x = IMAGES[:6]
    newer = onnx.ModelProto.FromString(model.SerializeToString())
    newer.opset_import[0].version = 19  # its first DequantizeLinear; nothing else changes for us
    found = ReferenceEvaluator(newer).run(["logits"], {"image": x.numpy()})[0]
    ours = run(model, x)["logits"]
    np.testing.assert_allclose(found, ours, rtol=0, atol=1e-3)
    assert (found.argmax(axis=1) == ours.argmax(axis=1)).all()


@pytest.mark.parametrize("name", SPECS)
def test_files_are_standard_and_small(graphs, name):
    graph = graphs[name]
    model = onnx_model(graph, metadata={"qat": "{}", "classes": "a b"})
    assert {node.domain for node in model.graph.node} == {""}
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 18)]
    assert {p.key: p.value for p in model.metadata_props} == {"qat": "{}", "classes": "a b"}
    arrays = [numpy_helper.to_array(t) for t in model.graph.initializer]
    layers = [node for node in graph if isinstance(node, Layer)]
    bits = sum(n.weight.numel() * (n.codes.bits if n.codes else 32) for n in layers)
    outputs = sum(n.weight.shape[0] for n in layers)
    # beside the codes a layer has three numbers of four bytes per output, zeros and a table
    assert sum(a.nbytes for a in arrays) < bits / 8 + 17 * outputs + 600 * len(layers)


def test_linear_layers_become_integer_ones(tmp_path):
    spec = QuantSpec(weight=WeightSpec(bits=2))
    make = lambda: LeNet5(num_classes=5, image_size=12)  # noqa: E731
    _, graph = exported(make, spec, images(16, channels=1, size=12))
    x = images(8, channels=1, size=12, seed=2)
    model = onnx_model(graph, exposed=True)
    given = exposed_codes(graph, run(model, x))
    assert moved(graph, given, x, Layer) <= 2
    found = optimised_operators(onnx_model(graph).SerializeToString(), tmp_path)
    assert (found["QGemm"], found["Gemm"], found["QLinearConv"], found["Conv"]) == (2, 1, 1, 1)


@pytest.mark.slow
def test_vgg():
    spec = QuantSpec(weight=WeightSpec(bits=4), activation=ActivationSpec(bits=3))
    example = images(4, size=16)
    _, graph = exported(lambda: Vgg11(num_classes=5, image_size=16), spec, example)
    found = run(onnx_model(graph), example)["logits"]
    torch.testing.assert_close(
        torch.from_numpy(found), IntegerNetwork(graph)(example), rtol=0, atol=1e-3
    )


def test_the_network_in_integers_needs_no_onnx():
    code = (
        "import sys; sys.modules['onnx'] = sys.modules['onnxruntime'] = None; "
        "import qat.export.integer.network, qat.export.integer.trace; "
        "import qat.export.packed.file, qat.commands.network"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    assert onnx.__name__ in sys.modules  # and this process has both


@pytest.mark.slow
def test_onnxruntime_tells_nobody_of_a_session(tmp_path):
    """Its reports leave a file in the home folder, if they are not turned off."""
    code = (
        "import sys; from qat.export.onnx.run import session\n"
        "try: session(b'', 'x')\n"
        "except Exception as error: assert 'x cannot be read' in str(error)\n"
    )
    env = environment(HOME=str(tmp_path))
    told = ("ORT_DISABLE_TELEMETRY", "CI", "GITHUB_ACTIONS", "ORT_RUNNING_UNIT_TESTS")
    for name in (*told, "XDG_CACHE_HOME"):
        env.pop(name, None)
    subprocess.run([sys.executable, "-c", code], check=True, env=env)
    assert list(tmp_path.rglob("*onnxruntime*")) == []
