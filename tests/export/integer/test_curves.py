"""Activation functions on integer sums: the codes are those of real numbers."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from qat.errors import SpecError
from qat.export.integer.curves import CURVES, Curved, curve_of, narrowed, product
from qat.export.integer.graph import Curve, Quantize, Relu, check_exact_form
from qat.export.integer.network import IntegerNetwork, moved_codes
from qat.export.integer.numbers import Combination, Term
from qat.export.onnx.model import onnx_model
from qat.export.onnx.qonnx import qonnx_model
from qat.models.timm_model import timm_model
from qat.nn.activation_codes import CodeRule
from qat.spec.quant import ActivationSpec, QuantSpec, WeightSpec
from support.exported import SPECS, exported, float_codes, images, in_double

ZERO = torch.zeros((), dtype=torch.float64)
RULES = {
    "unsigned": CodeRule(0.11, 0, 15, torch.tensor(0.0)),
    "signed": CodeRule(0.07, -8, 7, torch.tensor(0.0)),
    "nearest": CodeRule(0.03, -128, 127, torch.tensor(0.5, dtype=torch.float64)),
    "one bit": CodeRule(0.5, 0, 1, torch.tensor(0.0)),
    "only below zero": CodeRule(0.02, -7, 0, torch.tensor(0.0)),
    "coarse": CodeRule(40.0, -2, 3, torch.tensor(0.0)),
}
# every integer of a range, in two channels of which one turns round
SUMS = torch.arange(-4000, 4001, dtype=torch.int32).expand(2, -1).T.contiguous()


def sums(unit=1e-3, offset=0.0, peak=4000):
    multiplier = torch.tensor([unit, -1.7 * unit], dtype=torch.float64)
    return Combination((Term(SUMS, multiplier, peak),), torch.tensor([offset, -0.3]).double())


def codes_of_reals(kind, value, rule):
    """The codes of float64, and where its own rounding cannot decide on which side of a jump."""
    z = curve_of(kind).value(value.real()) / rule.step - rule.shift
    is_jump = (z - z.round()).abs() < 1e-11 * (1 + z.abs())
    return z.ceil().clamp(rule.low, rule.high).int(), is_jump


@pytest.mark.parametrize("kind", CURVES)
@pytest.mark.parametrize("name", RULES)
def test_every_sum_gets_the_code_of_its_real_value(kind, name):
    for value in (sums(), sums(0.01, 0.123), sums(1e-5, -1.3)):
        found = Curved(kind, value).codes(RULES[name])
        codes, is_jump = codes_of_reals(kind, value, RULES[name])
        assert found.dtype == torch.int32
        assert bool(((found == codes) | is_jump).all())
        assert int((found - codes).abs().max()) <= 1


@pytest.mark.parametrize("kind", ["relu", "relu6", "hardsigmoid", "hardswish"])
def test_on_a_jump_the_code_is_the_one_below(kind):
    """Where float64 is exact, u = n / 1024 and steps of 1/8: ceil, no tie is broken otherwise."""
    value = sums(2.0**-10)
    value = Combination((replace(value.terms[0], multiplier=ZERO + 3 * 2.0**-10),), ZERO)
    rule = CodeRule(0.125, 0, 15, ZERO)
    codes, _ = codes_of_reals(kind, value, rule)
    assert torch.equal(Curved(kind, value).codes(rule), codes)


@pytest.mark.parametrize("kind", CURVES)
def test_a_curve_falls_to_its_turn_and_rises_from_there(kind):
    curve = curve_of(kind)
    places = torch.linspace(-12, 12, 200_001, dtype=torch.float64)
    rises = curve.value(places).diff()
    is_behind = places[:-1] >= curve.turn
    assert bool((rises[is_behind] >= -1e-15).all())
    assert bool((rises[places[1:] <= curve.turn] <= 1e-15).all())
    assert (curve.turn > -math.inf) == bool((rises < -1e-9).any())


def test_the_turns_are_those_of_the_literature():
    """SiLU's from arXiv:1702.03118, Hardswish's from its formula x (x + 3) / 6."""
    assert curve_of("silu").turn == pytest.approx(-1.27846, abs=1e-5)
    assert curve_of("hardswish").turn == pytest.approx(-1.5, abs=1e-9)
    normal = torch.distributions.Normal(0.0, 1.0)
    turn = torch.tensor(curve_of("gelu").turn)  # Phi(x) + x phi(x) = 0
    slope = normal.cdf(turn) + turn * normal.log_prob(turn).exp()
    assert float(slope) == pytest.approx(0, abs=1e-6)


def test_two_terms_are_one_sum():
    one, other = sums(), sums(0.004)
    both = one + other
    found = Curved("silu", both).codes(RULES["signed"])
    codes, is_jump = codes_of_reals("silu", both, RULES["signed"])
    assert bool(((found == codes) | is_jump).all())


@pytest.mark.parametrize("kind", CURVES)
def test_a_rounded_curve_is_within_half_a_unit(kind):
    value = sums(0.01)
    term = Curved(kind, value).rounded().terms[0]
    assert int(term.integers.abs().max()) <= term.peak <= 2**30
    exact = curve_of(kind).value(value.real())
    error = (term.integers * term.multiplier - exact).abs().max()
    assert float(error) <= float(term.multiplier) / 2
    # of the magnitude that the sums may have, nothing is left unused but a factor below two
    assert float(term.multiplier) < 2 * float(curve_of(kind).value(torch.tensor(69.0))) / 2**29


def test_products_and_means_round_to_the_nearest():
    generator = torch.Generator().manual_seed(0)
    draw = torch.randint(-(2**30), 2**30, (2, 3, 4, 4), generator=generator)
    maps = Combination((Term(draw.int(), torch.tensor(2.0**-20).double(), 2**30),), ZERO)
    gate = draw[:, :, :1, :1].abs()
    gates = Combination((Term(gate.int(), torch.tensor(2.0**-30).double(), 2**30),), ZERO)
    term = product(maps, gates).terms[0]
    pairs = zip(draw.flatten().tolist(), gate.expand_as(draw).flatten().tolist(), strict=True)
    exact = [a * b for a, b in pairs]
    shift = round(math.log2(float(term.multiplier)) + 50)
    assert term.integers.flatten().tolist() == [(e + (1 << shift >> 1)) >> shift for e in exact]
    assert max(map(abs, term.integers.flatten().tolist())) <= term.peak < 2**31
    kept = narrowed(torch.tensor([5, -7]), ZERO + 0.25, 7)
    assert kept.integers.tolist() == [5, -7]
    assert float(kept.multiplier) == 0.25


class Gated(nn.Module):
    """An inverted residual with a gate, as in MobileNetV3, and a shuffle of its halves."""

    def __init__(self, act, gate):
        super().__init__()
        self.expand, self.norm1 = nn.Conv2d(8, 16, 1, bias=False), nn.BatchNorm2d(16)
        self.depth = nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False)
        self.norm2 = nn.BatchNorm2d(16)
        self.reduce, self.restore = nn.Conv2d(16, 8, 1), nn.Conv2d(8, 16, 1)
        self.project, self.norm3 = nn.Conv2d(16, 8, 1, bias=False), nn.BatchNorm2d(8)
        self.act1, self.act2, self.gate = act(), act(), gate()

    def forward(self, x):
        y = self.act1(self.norm1(self.expand(x)))
        y = self.act2(self.norm2(self.depth(y)))
        gate = self.gate(self.restore(torch.relu(self.reduce(y.mean((2, 3), keepdim=True)))))
        y = x + self.norm3(self.project(y * gate))
        n, c, h, w = y.shape
        y = y.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)
        one, other = y.chunk(2, dim=1)
        return torch.cat([one, nn.functional.silu(other)], 1)


def gated(act, gate):
    def make():
        stem = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), act()]
        head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)]
        return nn.Sequential(*stem, Gated(act, gate), Gated(act, gate), *head)

    return make


KINDS = {
    "hardswish": (nn.Hardswish, nn.Hardsigmoid),
    "silu": (nn.SiLU, nn.Sigmoid),
    "gelu": (nn.GELU, nn.Sigmoid),
    "gelu-tanh": (lambda: nn.GELU(approximate="tanh"), nn.Hardsigmoid),
    "relu": (nn.ReLU, nn.Sigmoid),
}
NAMES = ("w1a4", "w4a4-channel", "w8a8", "w1a1-shift", "lsq", "power-of-two", "input-bits")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spec", NAMES)
@pytest.mark.product
def test_codes_of_gated_networks_are_the_trained_networks(kind, spec):
    net, graph = exported(gated(*KINDS[kind]), SPECS[spec])
    network, x = IntegerNetwork(graph), images(16, seed=5)
    net = in_double(net, graph)
    counts = moved_codes(network, x, float_codes(net, network, x.double()))
    assert len(counts) == sum(isinstance(node, Quantize) for node in graph) >= 8
    # GELU's tails come as near to 0 as a product's 31 bits, which is where a sign jumps
    tails = kind.startswith("gelu") and spec == "w1a1-shift"
    assert sum(moved for moved, _ in counts.values()) <= (300 if tails else 0)
    if tails:
        return
    with torch.no_grad():
        theirs = net(x.double()).float()
    torch.testing.assert_close(network(x), theirs, rtol=0, atol=1e-5 * float(theirs.abs().max()))


def test_behind_quantizers_all_is_made_of_integers():
    """Every value, from the first codes on, but for the float layer's on the image."""
    _, graph = exported(gated(nn.Hardswish, nn.Hardsigmoid), SPECS["input-bits"])
    values = IntegerNetwork(graph).values(images(2))
    assert any(isinstance(node, Curve) for node in graph)
    names = [node.name for node in graph[1:]]
    assert not [name for name in names if isinstance(values[name], torch.Tensor)]


class Called(nn.Module):
    """A layer that is a module, then two that are called as functions of their own weights."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3), nn.Linear(32, 5)
        self.one = nn.Parameter(0.1 * torch.randn(8, 8, 3, 3))
        self.other = nn.Parameter(0.1 * torch.randn(8, 8, 3, 3))

    def forward(self, x):
        y = nn.functional.conv2d(self.stem(x), self.one)
        return self.head(nn.functional.conv2d(torch.relu(y), self.other).flatten(1))


def test_quantizers_at_calls_of_layers_are_refused():
    """Their calls are counted, those of modules too, which a traced network does not make."""
    with pytest.raises(SpecError, match=r"function conv2d.* is called in a network with quantizer"):
        exported(Called, SPECS["w4a4-channel"])


class Grouped(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, x):
        return self.conv(x).view(-1, 2, 4, 6, 6).transpose(1, 2)


def test_an_answer_in_groups_is_refused():
    with pytest.raises(SpecError, match="the network answers channels in groups, which cannot be"):
        exported(Grouped, SPECS["w1a4"])


@pytest.mark.parametrize("make", [onnx_model, qonnx_model])
def test_the_exact_forms_refuse_by_name(make):
    _, graph = exported(gated(nn.SiLU, nn.Sigmoid), SPECS["w1a4"])
    with pytest.raises(SpecError, match=r"the layer 2 \(SiLU\) cannot be exported in this form; "):
        make(graph)
    check_exact_form([node for node in graph if isinstance(node, (Quantize, Relu))])


# codes, of two million, that the 31 bits of a product may move: its bound is far above its values
TIMM = {
    "mobilenetv3_small_050": 0,
    "efficientnet_lite0": 0,
    "efficientnet_b0": 8,
    "ghostnet_050": 0,
    "seresnet18": 0,
    "repvgg_a0": 0,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TIMM)
def test_networks_of_timm(name):
    def make():
        return timm_model(name, num_classes=5, in_channels=3, image_size=64)

    spec = QuantSpec(weight=WeightSpec(bits=4), activation=ActivationSpec(bits=4))
    net, graph = exported(make, spec, images(8, size=64))
    network, x = IntegerNetwork(graph), images(4, size=64, seed=5)
    codes = float_codes(in_double(net, graph), network, x.double())
    counts = moved_codes(network, x, codes)
    assert sum(moved for moved, _ in counts.values()) <= TIMM[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["shufflenet_v2_x0_5", "mobilenet_v3_small"])
def test_networks_of_torchvision(name):
    from torchvision.models import get_model

    net, graph = exported(lambda: get_model(name, num_classes=5), QuantSpec(), images(8, size=64))
    network, x = IntegerNetwork(graph), images(4, size=64, seed=5)
    codes = float_codes(in_double(net, graph), network, x.double())
    assert sum(moved for moved, _ in moved_codes(network, x, codes).values()) == 0
