"""The general ONNX form: whatever PyTorch exports, levels as integers, weights at their bits."""

import copy
import logging

import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from qat.errors import SpecError
from qat.export.onnx import sizes
from qat.export.onnx.general import general_model
from qat.export.onnx.run import OnnxNetwork, onnx_metadata, optimised_operators, session
from qat.export.onnx.surgery import MARKS, Surgery
from qat.export.packed.convert import convert, quantizer_of
from qat.export.packed.weight_codes import WeightCodes
from qat.models.timm_model import timm_model
from qat.nn.activation_codes import CodeRule
from qat.quantize.activations import activation_quantizers
from qat.quantize.calibrate import start_steps
from qat.quantize.plan import project_weights
from qat.quantize.prepare import prepare
from qat.spec.header import Header
from qat.spec.quant import ActivationSpec, EndsSpec, QuantSpec, RuleSpec, WeightSpec
from support import ROOT
from support.products import mostly_slow

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
OTHERS = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(1))
IN_GRAPH = RuleSpec(name="float_only")


class Everything(nn.Module):
    """Gates, attention, permutations, a split, one convolution of two uses, a transposed one."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm, self.shared = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.squeeze, self.excite = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.scale = nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.up, self.head = nn.ConvTranspose2d(8, 4, 2, 2), nn.Linear(4, 5)

    def forward(self, x):
        x = F.hardswish(self.norm(self.stem(x)))
        x = self.shared(F.relu(self.shared(F.silu(x))))
        x = x * torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        one, two = x.chunk(2, 1)
        x = F.max_pool2d(torch.cat([two, one], 1), 2)
        tokens = self.scale(x.flatten(2).transpose(1, 2))
        x = x + self.attention(tokens, tokens, tokens)[0].transpose(1, 2).unflatten(2, x.shape[2:])
        return self.head(F.gelu(self.up(x)).mean((2, 3)))


class Made(nn.Module):
    """Weights that are normalised, of a convolution and of a layer on tokens."""

    def __init__(self):
        super().__init__()
        self.conv = parametrizations.weight_norm(nn.Conv2d(3, 8, 3))
        self.layer, self.head = parametrizations.spectral_norm(nn.Linear(8, 6)), nn.Linear(6, 5)

    def forward(self, x):
        tokens = F.elu(self.conv(x)).flatten(2).transpose(1, 2)
        return self.head(F.relu(self.layer(tokens)).amax(1))


class Recurrent(nn.Module):
    """The sizes of what an LSTM begins with are reckoned from the number of images."""

    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(24, 6, batch_first=True), nn.Linear(6, 5)

    def forward(self, x):
        return self.head(self.lstm(x.transpose(1, 2).flatten(2))[0][:, -1])


SPECS = {
    "w1a4": QuantSpec(),
    "w4a4, channel": QuantSpec(weight=WeightSpec(bits=4, granularity="channel")),
    "powers of two": QuantSpec(weight=WeightSpec(bits=3, grid="power_of_two")),
    "w8a8, image": QuantSpec(
        weight=WeightSpec(bits=8), activation=ActivationSpec(bits=8), input_bits=8
    ),
    "signs": QuantSpec(activation=ActivationSpec(kind="sign", bits=1, shift="channel")),
    "lsq": QuantSpec(
        weight=WeightSpec(bits=4, method="lsq"),
        rule=IN_GRAPH,
        activation=ActivationSpec(kind="lsq"),
    ),
    "dorefa": QuantSpec(
        weight=WeightSpec(bits=2, method="dorefa"),
        rule=IN_GRAPH,
        activation=ActivationSpec(kind="dorefa"),
    ),
    "float ends": QuantSpec(ends=EndsSpec(first="float", last="float")),
    "float": QuantSpec(
        weight=WeightSpec(bits=32), rule=IN_GRAPH, activation=ActivationSpec(bits=32)
    ),
}


def prepared(make, spec, example=IMAGES):
    torch.manual_seed(0)
    net = prepare(make(), spec, example=example)
    start_steps(net, spec, [example])
    project_weights(net, spec)
    return net.eval()


def model_of(net, spec, example=IMAGES):
    metadata = onnx_metadata(Header(quant=spec), "general")
    return general_model(net, convert(net, spec), example, metadata=metadata)


@torch.no_grad()
def differences(net, model, images):
    """Of each image the largest difference to the network's logits."""
    network = OnnxNetwork(model.SerializeToString(), "file")
    assert network.form == "general"
    return (network(images) - net(images)).abs().amax(1)


@pytest.mark.filterwarnings("ignore:only .* of the", "ignore:prepare.. found no activation")
@pytest.mark.parametrize(
    ("make", "name"),
    mostly_slow([(m, s) for m in (Everything, Made) for s in SPECS], day=(13,)),
)
def test_the_answers_are_the_networks(make, name):
    spec = SPECS[name]
    net = prepared(make, spec)
    before = copy.deepcopy(net.state_dict())
    model = model_of(net, spec)
    for images in (OTHERS, OTHERS[:1]):  # any number of images
        assert differences(net, model, images).max() < 1e-5
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    stored = {tensor.name for tensor in model.graph.initializer}
    few = set(convert(net, spec).weights)
    assert not any(f"{layer}.weight" in stored for layer in few)


def test_weights_are_in_the_file_at_their_bits():
    spec = SPECS["float ends"]
    net = prepared(lambda: nn.Sequential(
        nn.Conv2d(3, 64, 1), nn.GELU(), nn.Conv2d(64, 64, 3), nn.GELU(), nn.Flatten(),
        nn.Linear(64 * 36, 5),
    ), spec)  # fmt: skip
    model = model_of(net, spec)
    size = {t.name: len(t.raw_data) for t in model.graph.initializer}
    assert 64 * 64 * 9 // 8 in size.values()
    floats = 4 * (64 * 36 * 5 + 3 * 64)
    assert sum(size.values()) < floats + 64 * 64 * 9 // 8 + 4096


def test_quantizers_are_their_own_operations():
    net = prepared(lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.SiLU(), nn.Conv2d(4, 5, 8),
                                         nn.Flatten()), QuantSpec())  # fmt: skip
    graph = model_of(net, QuantSpec()).graph
    made = {output: node for node in graph.node for output in node.output}
    assert {n for n in made if n.startswith("quantized(")} == {
        f"quantized({name})" for name in activation_quantizers(net)
    }
    clips = [node for node in graph.node if node.op_type == "Clip"]
    assert [made[node.input[0]].op_type for node in clips] == ["Ceil"]
    assert not [node for node in graph.node if node.domain]


class Tokens(nn.Module):
    """Linear layers on tokens, which are moved between their quantizer and the product."""

    def __init__(self):
        super().__init__()
        self.stem, self.one = nn.Conv2d(3, 16, 1), nn.Linear(16, 24)
        self.two, self.head = nn.Linear(24, 6), nn.Linear(6, 5)

    def forward(self, x):
        x = self.one(F.gelu(self.stem(x)).flatten(2).transpose(1, 2))
        return self.head(self.two(F.relu(x)).amax(1))


@pytest.mark.parametrize(
    ("bits", "granularity"),
    mostly_slow([(b, g) for b in (1, 2, 4, 8) for g in ("tensor", "channel")], day=(5,)),
)
def test_linear_layers_multiply_codes_in_integers(bits, granularity, tmp_path):
    spec = QuantSpec(
        weight=WeightSpec(bits=bits, granularity=granularity), activation=ActivationSpec(bits=4)
    )
    net = prepared(Tokens, spec)
    model = model_of(net, spec)
    operators = optimised_operators(model.SerializeToString(), tmp_path)
    assert operators["MatMulIntegerToFloat"] == 2
    # the convolution's input is the image, and the last layer's one is a vector, for a Gemm
    assert operators["DequantizeLinear"] == 0
    assert differences(net, model, OTHERS).max() < 1e-5


@pytest.mark.slow
def test_weights_beyond_bytes_are_multiplied_in_floats(tmp_path):
    spec = QuantSpec(weight=WeightSpec(bits=5, grid="power_of_two"))  # levels up to 2^15 units
    net = prepared(Tokens, spec)
    model = model_of(net, spec)
    assert max(int(w.integers()[0].abs().max()) for w in convert(net, spec).weights.values()) > 127
    assert "MatMulIntegerToFloat" not in optimised_operators(model.SerializeToString(), tmp_path)
    assert differences(net, model, OTHERS).max() < 1e-5


@pytest.mark.parametrize("is_signed", [False, True])
@pytest.mark.parametrize("bits", range(1, 9))
def test_codes_of_bytes_are_those_of_the_staircase_on_its_jumps_too(bits, is_signed):
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if is_signed else (0, 2**bits - 1)
    codes = torch.arange(low - 2, high + 3)
    for step in (2.0**-5, 0.3, 7.77e-4, 123.4):
        for shift in (0.0, 0.5):
            rule = CodeRule(step, low, high, torch.tensor(shift, dtype=torch.float64))
            run = multiplied(rule)
            jumps = (codes + shift) * torch.tensor(step)
            nearest = jumps / step - shift  # of float32, as the staircase has it
            want = nearest.ceil().clamp(low, high) * torch.tensor(step)
            assert torch.equal(run(jumps), want)
            if step == 2.0**-5:  # exactly on the jump, so the code below it
                assert torch.equal(want, codes.clamp(low, high) * step)
            up = jumps.nextafter(torch.tensor(torch.inf)).nextafter(torch.tensor(torch.inf))
            up = torch.maximum(up, jumps + step * 1e-6)
            assert torch.equal(run(up), (up / step - shift).ceil().clamp(low, high) * step)


def multiplied(rule):
    """What one quantizer gives whose codes a weight of 1 multiplies in integers."""
    codes = torch.ones(1, 1, dtype=torch.int8)
    weight = WeightCodes(codes, torch.ones(()), quantizer_of(WeightSpec(bits=1)))
    tensor = onnx.TensorProto.FLOAT
    info = onnx.helper.make_tensor_value_info
    make = onnx.helper.make_node
    graph = onnx.helper.make_graph(
        [
            make("Quantize", ["image"], ["marked"], domain=MARKS, number=0, rank=2),
            make("Transpose", ["w"], ["turned"], perm=[1, 0]),
            make("MatMul", ["marked", "turned"], ["logits"]),
        ],
        "one",
        [info("image", tensor, ["batch", 1]), info("w", tensor, [1, 1])],
        [info("logits", tensor, ["batch", 1])],
    )
    model = Surgery(graph, [("one", rule)], {"w": weight}).model((1,), {})
    assert "QuantizeLinear" in {node.op_type for node in model.graph.node}
    running = session(model.SerializeToString(), "one")
    return lambda x: torch.from_numpy(
        running.run(["logits"], {"image": x.float().view(-1, 1).numpy()})[0]
    ).view(-1)


class Positions(nn.Module):
    """Two buffers of the same numbers."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 16, 1), nn.Linear(16 * 64, 5)
        for name in ("one", "two"):
            self.register_buffer(name, torch.linspace(0, 1, 16 * 64).view(16, 8, 8))

    def forward(self, x):
        x = F.gelu(self.conv(x) + self.one)
        return self.head(F.gelu(x + self.two).flatten(1))


def test_a_file_holds_equal_numbers_once_and_nothing_of_where_it_was_made():
    net = prepared(Positions, QuantSpec())
    model = model_of(net, QuantSpec())
    assert differences(net, model, OTHERS).max() < 1e-5
    sizes = [len(tensor.raw_data) for tensor in model.graph.initializer]
    assert sizes.count(4 * 16 * 64) == 1
    data = model.SerializeToString()
    for word in (str(ROOT), "stack_trace", "test_general", "Positions"):
        assert word.encode() not in data


class Windows(nn.Module):
    """Attention within windows, of five axes."""

    def __init__(self):
        super().__init__()
        self.stem, self.qkv, self.head = nn.Conv2d(3, 8, 1), nn.Linear(8, 24), nn.Linear(8, 5)

    def forward(self, x):
        windows = self.stem(x).unfold(2, 4, 4).unfold(3, 4, 4).flatten(4).flatten(2, 3)
        q, k, v = self.qkv(windows.permute(0, 2, 3, 1)).unflatten(3, (3, 2, 4)).unbind(3)
        q, k, v = (t.transpose(2, 3) for t in (q, k, v))  # (N, windows, heads, tokens, width)
        x = F.scaled_dot_product_attention(q, k, v).transpose(2, 3).flatten(3)
        return self.head(x.mean((1, 2)))


def test_attention_within_windows_is_exported_without_a_word(caplog):
    """The exporter's remarks are kept to itself."""
    caplog.set_level(logging.INFO)
    net = prepared(Windows, QuantSpec())
    model = model_of(net, QuantSpec())
    assert not caplog.records
    assert differences(net, model, OTHERS).max() < 1e-5


class Decomposed(nn.Module):
    """Attention of three axes with masks of both kinds, sums over named axes, blocks."""

    def __init__(self):
        super().__init__()
        self.stem, self.qkv, self.head = nn.Conv2d(3, 8, 1), nn.Linear(8, 24), nn.Linear(8, 5)
        self.places = nn.Parameter(torch.randn(16, 8))

    def forward(self, x):
        tokens = self.stem(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(tokens).unflatten(2, (3, 8)).permute(2, 0, 1, 3).unbind()
        q = F.scaled_dot_product_attention(q, k, v, attn_mask=torch.ones(64, 64).tril().bool())
        mask = torch.einsum("n h c, w c -> n h w", q, self.places)
        x = F.scaled_dot_product_attention(q, k[:, ::4], v[:, ::4], attn_mask=mask)
        blocks = F.unfold(x.transpose(1, 2).unflatten(2, (8, 8)), 3, padding=1, stride=2)
        return self.head(F.gelu(F.fold(blocks, (8, 8), 3, padding=1, stride=2)).mean((2, 3)))


def test_functions_that_the_exporter_does_not_know_are_exported():
    net = prepared(Decomposed, QuantSpec())
    assert differences(net, model_of(net, QuantSpec()), OTHERS).max() < 1e-5


@pytest.mark.parametrize(
    "make", [Made, *(pytest.param(m, marks=pytest.mark.slow) for m in (Decomposed, Recurrent))]
)
def test_sizes_are_those_of_the_values_that_a_runtime_makes(make, monkeypatch):
    model, found = model_of(prepared(make, QuantSpec()), QuantSpec()), {}
    monkeypatch.setattr(sizes._Held, "add", lambda self, node, made, known: found.update(made))
    every = [name for node in model.graph.node for name in node.output if name]
    exposed = onnx.ModelProto.FromString(model.SerializeToString())
    del exposed.graph.output[:]
    exposed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in every)
    running = session(exposed.SerializeToString(), "file")
    for images in (IMAGES[:1], OTHERS[:3]):
        sizes.Sizes(model, "file", "").check(len(images))
        values = dict(zip(every, running.run(every, {"image": images.numpy()}), strict=True))
        assert found == {name: value.size for name, value in values.items()}
        assert len(found) > 30


@pytest.mark.slow
def test_an_lstm_is_exported():
    net = prepared(Recurrent, QuantSpec())
    for images in (OTHERS, OTHERS[:1]):
        assert differences(net, model_of(net, QuantSpec()), images).max() < 1e-5


class Attending(nn.Module):
    """PyTorch's own attention, which gives its options by place."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 2, 2), nn.Linear(8, 5)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        x = self.stem(x).flatten(2).transpose(1, 2)
        return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))


@pytest.mark.slow
def test_attention_of_pytorch_is_exported():
    net = prepared(Attending, QuantSpec())
    assert differences(net, model_of(net, QuantSpec()), OTHERS).max() < 1e-5


class ChannelsLast(nn.Module):
    """Channels lie side by side in front of the mean, which some write by strides."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 1), nn.LayerNorm(8)
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(8, 5)

    def forward(self, x):
        x = self.norm(self.conv(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.head(self.pool(F.gelu(x)).flatten(1))


@pytest.mark.slow
def test_means_of_whole_maps_are_exported_in_any_layout():
    net = prepared(ChannelsLast, QuantSpec())
    assert differences(net, model_of(net, QuantSpec()), OTHERS).max() < 1e-5


class Sorted(nn.Module):
    """Its forward depends on the numbers."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 8)

    def forward(self, x):
        x = self.conv(x).flatten(1)
        return x if x.sum() > 0 else -x


class Drawn(nn.Module):
    """It draws random numbers in evaluation, too."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 8)

    def forward(self, x):
        x = self.conv(x).flatten(1)
        return x + torch.rand_like(x)


@pytest.mark.filterwarnings("ignore:prepare.. found no activation")
@pytest.mark.parametrize(
    ("make", "words"),
    mostly_slow(
        [
            (Sorted, "PyTorch cannot export this network"),
            (Drawn, "the ONNX operator RandomUniform"),
        ],
        day=(1,),
    ),
)
def test_what_cannot_be_exported_is_refused_in_a_sentence(make, words):
    net = prepared(make, QuantSpec())
    with pytest.raises(SpecError, match=words) as caught:
        model_of(net, QuantSpec())
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_what_could_not_be_opened_again_is_not_written(monkeypatch):
    monkeypatch.setattr(sizes, "_MOST", 100)
    large = torch.randn(2, 3, 128, 128)
    net = prepared(ChannelsLast, QuantSpec(), large)
    with pytest.raises(SpecError, match=r"no file of ours .* would need [\d,]+ numbers"):
        model_of(net, QuantSpec(), large)


FAMILIES = {
    "mobilenetv3_small_050": 32, "efficientnet_b0": 32, "convnext_atto": 32, "ghostnet_050": 32,
    "vit_tiny_patch16_224": 224, "resnet18": 32, "repvgg_a0": 32, "poolformer_s12": 64,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_networks_of_timm(name):
    size = FAMILIES[name]
    example = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    spec = QuantSpec(weight=WeightSpec(bits=4), activation=ActivationSpec(bits=8))

    def make():
        return timm_model(name, num_classes=5, in_channels=3, image_size=size)

    net = prepared(make, spec, example)
    model = model_of(net, spec, example)
    onnx.checker.check_model(model, full_check=True)
    images = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        exact = copy.deepcopy(net).double()(images.double())
        rounding = (net(images) - exact).abs().max()
    # a code that the last bits have moved is passed on, as it is between float32 and float64
    assert differences(net, model, images).max() <= 4 * rounding + 1e-5
