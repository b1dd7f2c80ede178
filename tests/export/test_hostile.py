"""Files that mean harm: nothing is read, built or printed on their word."""

import json
import resource
import time

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from qat.errors import CheckpointError, SpecError
from qat.export.onnx.allowed import OPERATORS
from qat.export.onnx.model import onnx_model
from qat.export.onnx.run import OnnxNetwork, onnx_metadata
from qat.export.packed.convert import convert
from qat.export.packed.file import from_bytes, to_bytes
from qat.export.packed.network import load_packed, save_packed
from qat.models.by_name import built_network
from qat.spec.header import Architecture, Header, Preprocessing
from support.exported import SPECS, exported, resnet8
from support.products import mostly_slow

PIXELS = Preprocessing(channels=3, size=8, mean=(0.0,) * 3, std=(1.0,) * 3, classes=tuple("abcde"))


def model(header=None):
    graph = exported(resnet8, SPECS["w1a4"])[1]
    header = header or Header(quant=SPECS["w1a4"], preprocessing=PIXELS)
    return onnx_model(graph, metadata=onnx_metadata(header, "faithful"))


def refused(data, words):
    with pytest.raises(CheckpointError) as caught:
        OnnxNetwork(data, "f.onnx")
    assert str(caught.value).startswith("f.onnx")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    for word in words:
        assert word in str(caught.value)


def test_an_onnx_file_of_ours_opens():
    network = OnnxNetwork(model().SerializeToString(), "f.onnx")
    assert network(torch.zeros(2, 3, 8, 8)).shape == (2, 5)


def test_an_onnx_file_may_not_read_other_files():
    proto = model()
    tensor = proto.graph.initializer.add(name="x", data_type=TensorProto.FLOAT, dims=[1])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="secret.bin")
    refused(proto.SerializeToString(), ["other files"])


def test_an_onnx_file_may_not_call_other_operators():
    proto = model()
    proto.opset_import.append(helper.make_opsetid("my.domain", 1))
    refused(proto.SerializeToString(), ["my.domain"])


# a node that would never end or take all memory: what it takes, constants by name, attributes
GROWING = {
    "Loop": (["n", "c"], {"n": 2**62, "c": np.array(True)},
             {"body": helper.make_graph([], "body", [], [])}),
    "Einsum": (["w", "w", "w"], {"w": np.zeros(2**20, np.float32)}, {"equation": "a,b,c->"}),
    "ConstantOfShape": (["s"], {"s": [4_000_000_000]}, {}),
    "Expand": (["w", "s"], {"w": np.zeros(1, np.float32), "s": [60_000, 60_000]}, {}),
    "Tile": (["image", "s"], {"s": [1, 1, 9_000, 9_000]}, {}),
    "Range": (["a", "b", "c"], {"a": 0, "b": 4_000_000_000, "c": 1}, {}),
    "Resize": (["image", "", "", "s"], {"s": [1, 3, 60_000, 60_000]}, {}),
    "Pad": (["image", "p"], {"p": [0, 0, 0, 0, 0, 0, 60_000, 60_000]}, {}),
    "Conv": (["image", "w"], {"w": np.zeros((3, 3, 1, 1), np.float32)}, {"pads": [30_000] * 4}),
    # of numbers that grow by being spread
    "Add": (["w", "t"], {"w": np.zeros((1, 90_000), np.float32),
                         "t": np.zeros((90_000, 1), np.float32)}, {}),
    # its shape hangs on the image
    "Reshape": (["image", "flat"], {"m": [-1]}, {}),
}  # fmt: skip


def large(kind):
    """A file of ours with one more such node in front."""
    proto = model()
    graph = proto.graph
    inputs, constants, attributes = GROWING[kind]
    for name, value in constants.items():
        graph.initializer.append(numpy_helper.from_array(np.array(value), name))
    if kind == "Reshape":
        cast = helper.make_node("Cast", ["image"], ["whole"], to=TensorProto.INT64)
        graph.node.extend([cast, helper.make_node("Reshape", ["whole", "m"], ["flat"])])
    outputs = [] if kind == "Loop" else ["grown"]
    graph.node.append(helper.make_node(kind, inputs, outputs, **attributes))
    return proto.SerializeToString()


@pytest.mark.parametrize("kind", GROWING)
def test_an_onnx_file_may_not_grow(kind):
    words = {"Conv": "'grown' would need"}
    words |= {name: f"the operator '{name}'" for name in ("Loop", "Einsum")}
    words |= {"Reshape": "'grown' would be of unknown size"}
    refused(large(kind), [words.get(kind, "'grown' would hold more")])


RECKONED = {
    "Expand": [10**6, 1, 1, 1],
    "Tile": [1, 1, 900, 900],
    "ConstantOfShape": [1, 1000, 100, 100],
    "Range": 2**28,
}


@pytest.mark.parametrize("kind", RECKONED)
def test_an_onnx_file_may_not_grow_by_a_size_that_it_reckons(kind):
    """Its shape is a product with the image's, as of honest networks."""
    proto, factor = model(), np.array(RECKONED[kind])
    graph = proto.graph
    for name, value in (("factor", factor), ("zero", np.array(0)), ("one", np.array(1))):
        graph.initializer.append(numpy_helper.from_array(value, name))
    graph.node.append(helper.make_node("Shape", ["image"], ["shape"]))
    if kind == "Range":
        graph.node.append(helper.make_node("Gather", ["shape", "zero"], ["images"]))
        graph.node.append(helper.make_node("Mul", ["images", "factor"], ["size"]))
    else:
        graph.node.append(helper.make_node("Mul", ["shape", "factor"], ["size"]))
    inputs = {"ConstantOfShape": ["size"], "Range": ["zero", "size", "one"]}
    graph.node.append(helper.make_node(kind, inputs.get(kind, ["image", "size"]), ["grown"]))
    refused(proto.SerializeToString(), ["'grown' would hold more"])


# nodes in front whose numbers cannot be reckoned, and what is said of the file
ODD = {
    "Div": (["one", "zero"], {}, "divides integers by what may be 0 or -1"),
    "Mod": (["one", "less"], {}, "divides integers by what may be 0 or -1"),
    "Gather": (["many", "far"], {}, ""),  # nothing reads it, so that nothing gathers
    "Reshape": (["many", "far"], {}, "would hold more"),
    "Concat": (["one", "many"], {"axis": 7}, "cannot be read"),
    "Constant": ([], {"value_strings": ["a", "b"]}, "of unknown size, or of texts"),
    "Cast": (["many"], {"to": TensorProto.STRING}, "of unknown size, or of texts"),
    "Squeeze": (["many", "far"], {}, "cannot be read"),
    "Identity": (["nowhere"], {}, "cannot be read"),
    "Add": ([], {}, "cannot be read"),
}


@pytest.mark.parametrize("kind", ODD)
def test_what_an_onnx_file_reckons_oddly_is_one_line(kind, recwarn):
    proto = model()
    inputs, attributes, word = ODD[kind]
    for name, value in (("one", 1), ("zero", 0), ("less", -1), ("many", [1, 2]), ("far", [10**12])):
        proto.graph.initializer.append(numpy_helper.from_array(np.array(value), name))
    proto.graph.node.append(helper.make_node(kind, inputs, ["odd"], **attributes))
    if word:
        refused(proto.SerializeToString(), [word])
    else:
        assert OnnxNetwork(proto.SerializeToString(), "f.onnx").form == "faithful"
    assert not recwarn.list


def function(proto):
    node = helper.make_node("Add", ["x", "x"], ["y"])
    opsets = [proto.opset_import[0]]
    proto.functions.append(helper.make_function("", "Relu", ["x"], ["y"], [node], opsets))


def version(proto):
    proto.opset_import[0].version = 11  # where axes are an attribute


def versions(proto):
    proto.opset_import.append(helper.make_opsetid("ai.onnx", 9))


def domain(proto):
    """Which a runtime has without being told of it."""
    proto.graph.node[0].domain = "com.microsoft"


def sparse_attribute(proto):
    values = helper.make_tensor("", TensorProto.FLOAT, [100], [1.0] * 100)
    places = helper.make_tensor("", TensorProto.INT64, [100], range(100))
    sparse = helper.make_sparse_tensor(values, places, [100])
    proto.graph.node.append(helper.make_node("Constant", [], ["odd"], sparse_value=sparse))


def subgraph(proto):
    empty = helper.make_graph([], "body", [], [])
    proto.graph.node[0].attribute.append(helper.make_attribute("body", empty))


def reference(proto):
    proto.graph.node[0].attribute.add(name="alpha", type=1, ref_attr_name="alpha")


def told_shape(proto):
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [3 * 10**8])
    proto.graph.value_info.append(value)


def told_output(proto):
    proto.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 3 * 10**8


def fixed_batch(proto):
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 3 * 10**8


def two_inputs(proto):
    proto.graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, [1]))


def constant_twice(proto):
    proto.graph.initializer.append(proto.graph.initializer[0])


def constant_as_input(proto):
    name = proto.graph.initializer[0].name
    proto.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]))


def nothing(proto):
    proto.Clear()


def unknown_height(proto):
    proto.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"


def attribute_twice(proto):
    """A runtime takes the first, onnx the last."""
    values = [numpy_helper.from_array(np.array([size])) for size in (10**9, 1)]
    node = helper.make_node("Constant", [], ["odd"], value=values[0])
    node.attribute.append(helper.make_attribute("value", values[1]))
    proto.graph.node.append(node)


def hidden_attribute(proto):
    proto.graph.node[0].attribute.append(helper.make_attribute("__x", 1))


def padded_by_itself(proto):
    """onnx and a runtime find other sizes."""
    attributes = {"kernel_shape": [3, 3], "auto_pad": "SAME_UPPER", "pads": [0, 0, 0, 0]}
    proto.graph.node.append(helper.make_node("MaxPool", ["image"], ["odd"], **attributes))


def promised_numbers(proto):
    proto.graph.initializer.append(onnx.TensorProto(name="odd", data_type=1, dims=[2**34]))


STRANGE = {
    function: "has operators of its own, or others than those of version",
    version: "has operators of its own, or others than those of version",
    versions: "has operators of its own, or others than those of version",
    domain: "has operators of 'com.microsoft'",
    sparse_attribute: "has attributes of a kind",
    subgraph: "has attributes of a kind",
    reference: "has attributes of a kind",
    told_shape: "tells of shapes",
    told_output: "is told to be [300000000] for each image",
    fixed_batch: "takes other things than any number of images",
    two_inputs: "takes other things than any number of images",
    constant_twice: "calls two values by one name",
    constant_as_input: "calls two values by one name",
    nothing: "is no ONNX file",
    unknown_height: "takes other things than any number of images",
    attribute_twice: "has attributes of a kind",
    hidden_attribute: "has attributes of a kind",
    padded_by_itself: "has attributes of a kind",
    promised_numbers: "whose numbers are not all there",
}


@pytest.mark.parametrize("change", STRANGE)
def test_an_onnx_file_that_no_export_of_ours_writes_is_not_run(change):
    proto = model()
    change(proto)
    refused(proto.SerializeToString(), [STRANGE[change]])


def add_constants(proto, **values):
    for name, value in values.items():
        proto.graph.initializer.append(numpy_helper.from_array(np.array(value), name))


def add_node(proto, kind, inputs, output, **attributes):
    proto.graph.node.append(helper.make_node(kind, inputs, [output], **attributes))


def test_sizes_hold_for_each_number_of_images():
    """(N - 1) * 1e9 + 1 numbers are none of one image's."""
    proto = model()
    add_constants(proto, less=[1, 1, 1, 1], first=[0], next=[1], many=[10**9], one=[1])
    add_node(proto, "Shape", ["image"], "shape")
    add_node(proto, "Slice", ["shape", "first", "next"], "images")
    add_node(proto, "Sub", ["images", "one"], "others")
    add_node(proto, "Mul", ["others", "many"], "size")
    add_node(proto, "Add", ["size", "one"], "more")
    add_node(proto, "ConstantOfShape", ["more"], "grown")
    network = OnnxNetwork(proto.SerializeToString(), "f.onnx")
    assert len(network(torch.zeros(1, 3, 8, 8))) == 1
    with pytest.raises(CheckpointError, match=r"'grown' would hold more .*; make one with"):
        network(torch.zeros(2, 3, 8, 8))


def many_constants(proto):
    """Each is small enough; a runtime keeps all."""
    for number in range(9):
        add_constants(proto, **{f"shape{number}": [10**7 + number]})
        add_node(proto, "ConstantOfShape", [f"shape{number}"], f"grown{number}")


def many_maps(proto):
    """Each is small enough; the sum holds all."""
    add_constants(proto, to=[1, 3, 2000, 2000])
    for number in range(6):
        add_node(proto, "Resize", ["image", "", "", "to"], f"grown{number}")
    add_node(proto, "Sum", [f"grown{number}" for number in range(6)], "sum")


def transposed(proto):
    """Few numbers go in and come out, many lie in between."""
    add_constants(proto, w=np.zeros((3, 1, 3000, 3000), np.float32))
    shape = {"strides": [1, 1], "pads": [1500] * 4}
    add_node(proto, "ConvTranspose", ["image", "w"], "grown", **shape)


def normalised(proto):
    """Its window over the channels is laid out."""
    add_node(proto, "LRN", ["image"], "grown", size=2**31 - 1)


def recurrent(proto):
    """Its gates are held for each step, though only the last state is asked for."""
    add_constants(proto, w=np.zeros((1, 16, 8), np.float32), r=np.zeros((1, 16, 4), np.float32))
    add_constants(proto, long=[2**20, 1, 1], w_to=[1, 4 * 4000, 8], r_to=[1, 4 * 4000, 4000],
                  one_w=np.zeros((1, 1, 8), np.float32), one_r=np.zeros((1, 1, 1), np.float32),
                  axes=[0])  # fmt: skip
    add_node(proto, "ReduceSum", ["image", "axes2"], "row", keepdims=0)
    add_constants(proto, axes2=[1, 2])
    add_node(proto, "Unsqueeze", ["row", "axes"], "step")
    add_node(proto, "Expand", ["step", "long"], "steps")
    add_node(proto, "Expand", ["one_w", "w_to"], "wide_w")
    add_node(proto, "Expand", ["one_r", "r_to"], "wide_r")
    node = helper.make_node("LSTM", ["steps", "wide_w", "wide_r"], ["", "grown"], hidden_size=4000)
    proto.graph.node.append(node)


def interleaved(proto):
    """In the order of the file one map is held at a time; a runtime makes all of one kind first."""
    add_constants(proto, to=[1, 3, 3000, 3000], axes=[1, 2, 3])
    for number in range(4):
        add_node(proto, "Resize", ["image", "", "", "to"], f"grown{number}")
        for kind in ("ReduceMax", "ReduceMin"):
            add_node(proto, kind, [f"grown{number}", "axes"], f"{kind}{number}", keepdims=0)
    for kind in ("ReduceMax", "ReduceMin"):
        add_node(proto, "Sum", [f"{kind}{number}" for number in range(4)], kind)
    add_node(proto, "Add", ["ReduceMax", "ReduceMin"], "both")


@pytest.mark.parametrize(
    ("grow", "word"),
    [
        (normalised, "'grown' would need"),
        (recurrent, "'grown' would need"),
        (interleaved, "would hold more than 67,108,864 numbers with others"),
        (many_constants, "'grown6' would hold more numbers than the file"),
        (many_maps, "'grown5' would hold more than 67,108,864 numbers with others"),
        (transposed, "'grown' would need"),
    ],
)
def test_what_is_held_at_a_time_is_bounded(grow, word):
    proto = model()
    grow(proto)
    refused(proto.SerializeToString(), [word])


def test_a_runtimes_own_format_is_no_onnx_file():
    refused(b"\x1c\0\0\0ORTM" + model().SerializeToString(), ["is no ONNX file"])


def test_an_onnx_file_may_not_hold_sparse_weights():
    """A kilobyte of them is made dense to any size."""
    proto = model()
    values = helper.make_tensor("w", TensorProto.FLOAT, [1], [1.0])
    places = helper.make_tensor("i", TensorProto.INT64, [1], [0])
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [2**40]))
    refused(proto.SerializeToString(), ["sparse weights"])


def test_an_onnx_file_that_fails_while_it_runs_is_one_line():
    network = OnnxNetwork(model().SerializeToString(), "f.onnx")
    with pytest.raises(CheckpointError, match=r"^f\.onnx cannot be read"):
        network(torch.zeros(2, 3, 9, 9))


def test_every_operator_that_is_written_is_allowed():
    found = {node.op_type for node in model().graph.node}
    assert found <= OPERATORS
    assert not {"Loop", "If", "Scan", "NonZero", "Einsum", "RandomUniform"} & OPERATORS


@pytest.mark.parametrize(
    "change",
    [
        {"size": 1500},
        {"channels": 1, "color": "L", "mean": (0.0,), "std": (1.0,)},
        {"classes": ("one",)},
    ],
)
def test_an_onnx_header_must_tell_of_the_graphs_own_shapes(change):
    fields = {name: getattr(PIXELS, name) for name in Preprocessing.__dataclass_fields__}
    header = Header(quant=SPECS["w1a4"], preprocessing=Preprocessing(**{**fields, **change}))
    refused(model(header).SerializeToString(), ["its header tells of", "export it again"])


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("{}", "not written by qat"),
        ("[" * 100_000, "not written by qat"),
        ('{"form": "fast", "header": {"quant": {}, "preprocessing": {"channels": 0}}}', "channels"),
        (json.dumps({"form": "f", "header": {"quant": {}, "\x1b]0;x": 1}}), "is not an option"),
    ],
)
def test_onnx_metadata_that_are_no_header(text, word):
    proto = model()
    helper.set_model_props(proto, {"qat": text})
    with pytest.raises(CheckpointError) as caught:
        OnnxNetwork(proto.SerializeToString(), "f.onnx")
    assert word in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["a\nb", "\x1b[2J", "\ud800"])
def test_class_names_must_be_printable(name):
    with pytest.raises(SpecError, match="cannot be printed; rename it"):
        Preprocessing(channels=1, size=8, mean=(0.0,), std=(1.0,), classes=("a", name))


@pytest.mark.parametrize("share", [-0.1, 1.5, "x", float("nan")])
def test_accuracies_must_be_shares(share):
    with pytest.raises(SpecError, match=r"header\.accuracy must be 0\.\.1"):
        Header(quant=SPECS["w1a4"], accuracy={"test": share})


def test_an_architecture_larger_than_its_file_is_not_built():
    small = Architecture(family="small", options={"name": "resnet20"})
    assert built_network(small, PIXELS, largest=300_000) is not None
    with pytest.raises(CheckpointError, match="more than 1,000 weights, as its file cannot hold"):
        built_network(small, PIXELS, largest=1_000)


HUGE = {
    "blocks": {"name": "resnet18", "kwargs": {"layers": [1_000_000] * 4}},
    "more blocks": {"name": "resnet18", "kwargs": {"layers": [10**12] * 4}},
    "depth": {"name": "vit_tiny_patch16_224", "kwargs": {"depth": 100_000}},
    "more depth": {"name": "vit_tiny_patch16_224", "kwargs": {"depth": 10**10}},
    "width": {"name": "vit_tiny_patch16_224", "kwargs": {"embed_dim": 999_000, "num_heads": 1}},
    "buffers": {"name": "beit_base_patch16_224", "kwargs": {"img_size": 1536}},
    "nan": {"name": "resnet18", "kwargs": {"drop_rate": float("nan")}},
}


@pytest.mark.parametrize("name", mostly_slow(HUGE, day={1, 3, 4, 5, 6}))
def test_an_architecture_without_end_is_stopped_while_it_is_built(name):
    odd = Architecture(family="timm", options=HUGE[name])
    begin, memory = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError) as caught:
        built_network(odd, PIXELS, largest=10**9)
    assert "\n" not in str(caught.value)
    assert time.monotonic() - begin < 60  # seconds; before, for ever
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 500_000  # kB
    assert built_network(
        Architecture(family="small", options={"name": "lenet5"}), PIXELS, largest=10**6
    )


@pytest.mark.parametrize(
    "options",
    [
        {"name": "resnet20", "nonsense": 1},
        {"name": "resnet20", "norm_affine": "x"},
        {"name": 3},
        {},
    ],
)
def test_options_that_no_architecture_has(options):
    with pytest.raises(CheckpointError, match="the architecture small cannot be built") as caught:
        built_network(Architecture(family="small", options=options), PIXELS, largest=10**6)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kwargs", [{"act_layer": "nonsense"}, {"layers": [1, 1]}, {"block": "x"}])
def test_options_that_timm_does_not_survive(kwargs):
    odd = Architecture(family="timm", options={"name": "resnet10t", "kwargs": kwargs})
    with pytest.raises(CheckpointError, match="the architecture timm cannot be built"):
        built_network(odd, PIXELS, largest=10**9)


def test_a_file_that_names_no_architecture_needs_a_model(tmp_path):
    net, _ = exported(resnet8, SPECS["w1a4"])[:2]
    path = tmp_path / "own.safetensors"
    size = save_packed(path, convert(net, SPECS["w1a4"]), Header(quant=SPECS["w1a4"]))
    assert path.stat().st_size == size
    with pytest.raises(CheckpointError, match="names no architecture; open it with"):
        load_packed(path)
    packed = load_packed(path, model=resnet8())
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(packed.net(x), net(x))
    assert to_bytes(packed.converted, packed.header) == path.read_bytes()
    assert from_bytes(path.read_bytes()).size == size
