"""The network in integers: its codes are those of the trained network."""

import copy
import math

import pytest
import torch
from torch import nn

from qat.export.integer.graph import AveragePool, Layer, Quantize, Relu
from qat.export.integer.network import IntegerNetwork, real
from qat.export.integer.numbers import Combination
from qat.export.integer.trace import network_graph
from qat.export.packed.convert import convert
from qat.models.small import LeNet5
from qat.quantize.prepare import prepare
from qat.spec.quant import ActivationSpec, EndsSpec, QuantSpec, WeightSpec
from support.exported import SPECS, exported, float_codes, images, in_double, resnet8

IMAGES = images(32, seed=5)
HANDFUL = 2  # of the 147,456 codes of a network; float32 sums of 8-bit codes round at jumps
NONE = torch.zeros((), dtype=torch.float64)


@pytest.fixture(scope="module", params=SPECS, ids=list(SPECS))
def case(request):
    net, graph = exported(resnet8, SPECS[request.param])
    return net, IntegerNetwork(graph)


@torch.no_grad()
def answers(net, x):
    return net(x)


def moved_codes(net, network, x):
    """Codes that differ although every other quantizer's are the float network's, and all codes."""
    given = float_codes(net, network, x)
    differing_, count = 0, 0
    for name, theirs in given.items():
        others = {other: codes for other, codes in given.items() if other != name}
        ours = network.values(x, given=others)[name]
        distance = (ours.terms[0].integers - theirs.terms[0].integers).abs()
        assert int(distance.max()) <= (2 if network.rules[name].is_sign else 1)
        differing_ += int((distance > 0).sum())
        count += distance.numel()
    return differing_, count


def test_the_codes_are_the_trained_networks(case):
    net, network = case
    moved, count = moved_codes(net, network, IMAGES)
    quantizers = [node for node in network.graph if isinstance(node, Quantize)]
    assert count == sum(len(IMAGES) * math.prod(node.shape) for node in quantizers)
    assert moved <= HANDFUL


def test_the_logits_are_close(case):
    net, network = case
    theirs = answers(net, IMAGES)
    torch.testing.assert_close(
        network(IMAGES), theirs, rtol=0, atol=2e-3 * float(theirs.abs().max())
    )


def test_the_codes_use_their_levels(case):
    """A network whose codes never change would pass everything above."""
    _, network = case
    for name, rule in network.rules.items():
        codes = network.values(IMAGES)[name].terms[0].integers
        assert int(codes.min()) >= rule.low
        assert int(codes.max()) <= rule.high
        assert len(codes.unique()) >= min(3, rule.high - rule.low + 1 if not rule.is_sign else 2)


@pytest.mark.parametrize(
    "name", ["w1a4", "w2a4", "w4a4-channel", "w1a1-shift", "lsq", "input-bits"]
)
def test_in_double_precision_all_codes_agree(name):
    """Nothing is left but real numbers: not one code may differ, none given."""
    net, graph = exported(resnet8, SPECS[name])
    network = IntegerNetwork(graph)
    net = in_double(net, graph)
    found = network.values(IMAGES)
    for node_name, codes in float_codes(net, network, IMAGES.double()).items():
        assert torch.equal(found[node_name].terms[0].integers, codes.terms[0].integers)
    logits = answers(net, IMAGES.double())
    torch.testing.assert_close(network(IMAGES).double(), logits, rtol=0, atol=1e-5)


def test_float32_alone_moves_codes_and_only_on_jumps():
    """Without norm and bias many sums are exactly zero, where the code jumps from 0 to 1."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 8, 3, bias=False), nn.ReLU(), nn.Conv2d(8, 8, 3, bias=False)]
        layers += [nn.ReLU(), nn.Flatten(), nn.Linear(128, 5)]
    net, graph = exported(lambda: nn.Sequential(*layers), QuantSpec())
    network = IntegerNetwork(graph)
    *_, second = float_codes(net, network, IMAGES).items()
    (name, theirs), first = second, next(iter(network.rules))
    given = {first: float_codes(net, network, IMAGES)[first]}
    values = network.values(IMAGES, given=given)
    sums = values[next(n for n in graph if n.name == name).inputs[0]].terms[0].integers
    differs = values[name].terms[0].integers != theirs.terms[0].integers
    assert not bool((differs & (sums != 0)).any())
    assert 0.02 < float((sums == 0).double().mean()) < 0.5
    exact = float_codes(in_double(net, graph), network, IMAGES.double())[name]
    assert torch.equal(network.values(IMAGES)[name].terms[0].integers, exact.terms[0].integers)


def test_two_layers_by_hand():
    conv, linear = nn.Conv2d(1, 1, 1), nn.Linear(4, 2)
    with torch.no_grad():
        conv.weight.fill_(0.5)
        conv.bias.fill_(0.25)
        linear.weight.copy_(torch.tensor([[1.0, -1, 1, 1], [-1, -1, -1, 1]]) * 0.25)
        linear.bias.copy_(torch.tensor([1.0, 0.0]))
    spec = QuantSpec(activation=ActivationSpec(bits=2))
    x = torch.tensor([-0.3, 0.5, 1.7, -1.0]).view(1, 1, 2, 2)
    net = prepare(nn.Sequential(conv, nn.ReLU(), nn.Flatten(), linear), spec, example=x)
    with torch.no_grad():
        net[1].step.fill_(0.5)
    network = IntegerNetwork(network_graph(net, convert(net, spec), x.repeat(2, 1, 1, 1)))
    # 0.1, 0.5, 1.1, -0.25 in steps of a half, rounded up
    assert network.codes(x)["1"].flatten().tolist() == [1, 1, 3, 0]
    # 0.125 (1 - 1 + 3 + 0) + 1 and 0.125 (-1 - 1 - 3 + 0)
    assert network(x).tolist() == [[1.375, -0.625]]


def test_integers_stay_integers_up_to_the_logits():
    _, graph = exported(resnet8, QuantSpec(weight=WeightSpec(bits=2), input_bits=8))
    found = IntegerNetwork(graph).values(IMAGES)
    for node in graph[1:]:
        value = found[node.name]
        if isinstance(node, (Layer, Quantize, AveragePool)):
            assert isinstance(value, Combination)
            for term in value.terms:
                assert term.integers.dtype == torch.int32
                assert int(term.integers.abs().max()) <= term.peak


def test_float_activations_are_computed_in_double():
    _, graph = exported(resnet8, SPECS["w1a32"])
    assert any(isinstance(node, Relu) for node in graph)
    found = IntegerNetwork(graph).values(IMAGES)
    assert all(value.dtype == torch.float64 for value in found.values())


def test_dilated_and_grouped_layers_have_the_values_of_double_precision():
    class Dilated(torch.nn.Sequential):
        def __init__(self):
            super().__init__(
                torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.BatchNorm2d(8), torch.nn.ReLU(),
                torch.nn.Conv2d(8, 8, 3, padding=(1, 2), dilation=(1, 2), groups=2),
                torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1),
                torch.nn.Flatten(), torch.nn.Linear(8, 5),
            )  # fmt: skip

    net, graph = exported(Dilated, QuantSpec(weight=WeightSpec(bits=2)))
    found = IntegerNetwork(graph)(IMAGES)
    with torch.no_grad():
        wanted = copy.deepcopy(net).double()(IMAGES.double())
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=1e-6)


def test_lenet_with_maxima_and_linear_layers():
    spec = QuantSpec(weight=WeightSpec(bits=2), ends=EndsSpec(last="float"))
    example = images(16, channels=1, size=12)
    net, graph = exported(lambda: LeNet5(num_classes=5, image_size=12), spec, example)
    network = IntegerNetwork(graph)
    moved, _ = moved_codes(net, network, images(32, channels=1, size=12, seed=3))
    assert moved <= HANDFUL
    torch.testing.assert_close(network(example), answers(net, example), rtol=0, atol=1e-4)
    assert real(network.values(example)[graph[-1].name]).dtype == torch.float64
