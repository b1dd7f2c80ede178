"""Graphs of networks: their kinds of nodes, and numbers equal to the network's."""

from collections import Counter

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from qat.errors import SpecError
from qat.export.integer.graph import Add, Affine, AveragePool, Image, Layer, Subsample
from qat.export.integer.network import IntegerNetwork
from qat.export.integer.trace import network_graph
from qat.export.packed.convert import convert
from qat.models.resnet import torchvision_resnet
from qat.models.small import CifarResNet, LeNet5, Vgg11
from qat.models.timm_model import timm_model
from qat.quantize.prepare import enable_quantizers, prepare
from qat.spec.quant import ActivationSpec, QuantSpec, RuleSpec, WeightSpec
from support.exported import exported, images, randomised, resnet8

FLOAT = QuantSpec(
    rule=RuleSpec(name="float_only"),
    weight=WeightSpec(bits=32),
    activation=ActivationSpec(bits=32),
)


def torchvision(stem):
    return torchvision_resnet("resnet18", num_classes=5, in_channels=3, image_size=16, stem=stem)


def timm(name):
    return timm_model(name, num_classes=5, in_channels=3, image_size=32)


ENDS = {
    "Image": 1,
    "Flatten": 1,
}  # the last map of most has one pixel, over which nothing is averaged
MEAN = {"AveragePool": 1, **ENDS}
NETWORKS = {
    "resnet20": (
        lambda: CifarResNet(20, num_classes=5),
        {"Layer": 20, "Quantize": 19, "Add": 9, "Subsample": 2, **MEAN},
    ),
    "resnet18-small": (
        lambda: torchvision("small"), {"Layer": 21, "Quantize": 17, "Add": 8, **MEAN},
    ),
    "resnet18-standard": (
        lambda: torchvision("standard"),
        {"Layer": 21, "Quantize": 17, "Add": 8, "MaxPool": 1, **ENDS},
    ),
    "vgg11": (
        lambda: Vgg11(num_classes=5, image_size=16),
        {"Layer": 9, "Quantize": 8, "MaxPool": 4, **ENDS},
    ),
    "lenet5": (
        lambda: LeNet5(num_classes=5, in_channels=3, image_size=16),
        {"Layer": 5, "Quantize": 4, "MaxPool": 2, **ENDS},
    ),
    "resnet10t": (
        lambda: timm("resnet10t"),
        {"Layer": 15, "Quantize": 11, "Add": 4, "MaxPool": 1, "AveragePool": 3, **ENDS},
    ),
    "regnetx": (
        lambda: timm("regnetx_002"), {"Layer": 45, "Quantize": 40, "Add": 13, **ENDS},
    ),
    # norms in front of activations, behind sums
    "resnetv2": (
        lambda: timm("resnetv2_18"),
        {"Layer": 21, "Quantize": 17, "Add": 8, "Affine": 9, "MaxPool": 1, **ENDS},
    ),
    "mobilenetv2": (
        lambda: timm("mobilenetv2_050"), {"Layer": 53, "Quantize": 52, "Add": 10, **ENDS},
    ),
}  # fmt: skip


SMALL = ("resnet20", "resnet18-small", "resnet18-standard", "vgg11", "lenet5")


AT_NIGHT = (
    *("resnet18-standard", "resnet18-small", "mobilenetv2", "resnet10t", "vgg11", "regnetx"),
)  # what others have, too


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in AT_NIGHT else ()) for n in NETWORKS]
)
def test_kinds_of_nodes_and_logits(name):
    make, kinds = NETWORKS[name]
    example = images(2, size=16 if name in SMALL else 32)
    net, graph = exported(make, QuantSpec(), example)
    assert Counter(type(node).__name__ for node in graph) == kinds
    with torch.no_grad():
        expected = net(example)
    assert graph[-1].shape == (5,)
    # a code that moves at a jump moves the logits a little
    allowed = 0.02 * float(expected.abs().max())
    torch.testing.assert_close(IntegerNetwork(graph)(example), expected, rtol=0, atol=allowed)


def test_norms_are_folded_as_batch_norm_computes():
    example = images(2)
    _, graph = exported(resnet8, FLOAT, example)
    assert not any(isinstance(node, Affine) for node in graph)
    torch.manual_seed(0)
    conv, bn = nn.Conv2d(3, 4, 3, bias=True), nn.BatchNorm2d(4)
    net = randomised(nn.Sequential(conv, bn, nn.BatchNorm2d(4, affine=False)), images(16))
    _, layer = network_graph(net, convert(net, FLOAT), example)
    y = F.conv2d(example.double(), layer.weight.double())
    ours = y * layer.multiplier.view(-1, 1, 1) + layer.offset.view(-1, 1, 1)
    expected = net.double()(example.double())
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)
    assert float(layer.multiplier[0]) == 0.0  # a gamma of zero


class AfterSum(nn.Module):
    """A norm behind a sum, and a value that is used twice, so that no norm may be folded in."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
        self.bn1, self.bn2 = nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x):
        y = self.a(x)
        return (self.bn1(y + self.b(x)) + self.bn2(y)).mean(dim=[-1, -2])


def test_norms_behind_sums_and_shared_values_stay():
    torch.manual_seed(0)
    net, example = randomised(AfterSum(), images(16)), images(2)
    graph = network_graph(net, convert(net, FLOAT), example)
    kinds = [Image, Layer, Layer, Add, Affine, Affine, Add, AveragePool]
    assert [type(node) for node in graph] == kinds
    expected = net.double()(example.double()).float()
    torch.testing.assert_close(IntegerNetwork(graph)(example), expected)


def test_a_network_of_the_float_phase_is_refused():
    example = images(2)
    net = nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU6(), nn.Conv2d(2, 1, 1), nn.Flatten())
    prepare(net, QuantSpec(input_bits=8), example=example)
    enable_quantizers(net, False)
    with pytest.raises(
        SpecError, match=r"input_quantizer is disabled.* float warm start; export a"
    ):
        convert(net, QuantSpec())


def test_two_subsamplings_are_not_one():
    class Quarter(nn.Module):
        def forward(self, x):
            return F.pad(x[:, :, ::2, ::2][:, :, ::2, :], (0, 0, 0, 0, 1, 0)).flatten(1)

    example = images(2)
    graph = network_graph(Quarter(), convert(Quarter(), FLOAT), example)
    assert sum(isinstance(node, Subsample) for node in graph) == 2
    assert torch.equal(IntegerNetwork(graph)(example), Quarter()(example))


def test_the_network_keeps_its_mode_and_its_weights():
    net = prepare(resnet8(), QuantSpec(), example=images(2)).train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    network_graph(net, convert(net, QuantSpec()), images(2))
    assert all(module.training for module in net.modules())
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


class Remembering(nn.Module):
    """Keeps what it has made of its parameters, as timm's EfficientViT does in evaluation."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 1), nn.Linear(4, 5)
        self.scale = nn.Parameter(torch.ones(4))
        self.kept = {}

    def forward(self, x):
        if "scale" not in self.kept:
            self.kept["scale"] = 2 * self.scale
        x = self.conv(x) * self.kept["scale"].view(1, -1, 1, 1)
        return self.head(x.mean((2, 3)))


def test_a_network_that_keeps_what_it_made_is_left_without_symbols():
    spec = QuantSpec(activation=ActivationSpec(bits=32))
    net, x = Remembering(), torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    prepare(net, spec, example=x)
    net.kept.clear()
    graph = network_graph(net.eval(), convert(net, spec), x)
    with torch.no_grad():
        assert isinstance(net(x), torch.Tensor)
    assert len([node for node in graph if type(node).__name__ == "Layer"]) == 2
