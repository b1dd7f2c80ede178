"""Functions and methods of tensors in a forward: followed, or refused with what to do."""

import operator

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from qat.errors import SpecError
from qat.export.integer.graph import Layer
from qat.export.integer.network import IntegerNetwork
from qat.export.integer.trace import network_graph
from qat.export.packed.convert import convert
from qat.quantize.prepare import prepare
from qat.spec.quant import ActivationSpec, QuantSpec, RuleSpec, WeightSpec
from support.exported import images, randomised

FLOAT = QuantSpec(
    rule=RuleSpec(name="float_only"),
    weight=WeightSpec(bits=32),
    activation=ActivationSpec(bits=32),
)


class Functional(nn.Module):
    """Functions and methods where others have modules; two layers share one weight."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 3, padding="same", bias=False), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3, padding=(1, 1)), nn.BatchNorm2d(4)
        self.conv3 = nn.Conv2d(4, 4, 3, padding="same", dilation=2)
        self.conv3.weight = self.conv2.weight
        self.drop, self.identity = nn.Dropout(0.9), nn.Identity()
        self.fc1, self.fc2 = nn.Linear(64, 6), nn.Linear(10, 5)

    def norm(self, x, bn):
        return F.batch_norm(
            x, bn.running_mean, bn.running_var, bn.weight, bn.bias, bn.training, 0.1, bn.eps
        )

    def forward(self, x):
        x = F.relu(self.norm(self.conv1(x), self.bn1))
        x = F.max_pool2d(self.identity(x), 2)
        y = F.relu6(self.bn2(self.conv2(x)))
        y = self.drop(torch.add(y, self.conv3(x)))
        y = F.dropout(y, 0.5, self.training)
        flat = self.fc1(y.reshape(y.size(0), -1)).relu()
        halved = F.pad(y[:, :, ::2, ::2], (0, 0, 0, 0, 3, 3))
        pooled = F.avg_pool2d(halved, 2, 2).flatten(1) + halved.mean((2, 3))
        del flat
        return self.fc2(pooled.view(pooled.size(0), -1))


def functional():
    torch.manual_seed(0)
    example = images(16)
    net = randomised(prepare(Functional(), FLOAT, example=example), example)
    return net, example


def test_functions_are_followed_and_what_changes_nothing_vanishes():
    net, example = functional()
    graph = network_graph(net, convert(net, FLOAT), example)
    assert [type(node).__name__ for node in graph] == [
        "Image", "Layer", "Relu", "MaxPool", "Layer", "Relu", "Layer", "Add", "Subsample",
        "AveragePool", "Flatten", "AveragePool", "Add", "Layer",
    ]  # fmt: skip
    with torch.no_grad():
        expected = net.double()(example.double())
    torch.testing.assert_close(IntegerNetwork(graph)(example), expected.float())


def test_layers_that_share_a_weight_share_its_codes():
    spec = QuantSpec(weight=WeightSpec(bits=2), activation=ActivationSpec(bits=32))
    net, example = functional()
    graph = network_graph(net, convert(net, spec), example)
    layers = {node.path: node for node in graph if isinstance(node, Layer)}
    assert layers["conv3"].codes is layers["conv2"].codes is not None
    assert layers["conv3"].dilation == layers["conv3"].padding == (2, 2)


class Wrapped(nn.Module):
    """A 1x1 convolution and one function behind it."""

    def __init__(self, function):
        super().__init__()
        self.conv, self.function = nn.Conv2d(3, 3, 1), function
        self.register_buffer("place", torch.ones(3, 8, 8))
        self.register_buffer("mean", torch.tensor([0.5, 0.0, -0.5]))
        self.register_buffer("var", torch.tensor([0.5, 1.0, 2.0]))

    def forward(self, x):
        return self.function(self, self.conv(x)).flatten(1)


def graph_of(function):
    net = Wrapped(function)
    return network_graph(net, convert(net, FLOAT), images(2)), net


def shuffled(x):
    n, c, h, w = x.shape
    return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


KNOWN = {
    "avg_pool2d": lambda _, x: F.avg_pool2d(x, 2),
    "avg_pool2d-names": lambda _, x: F.avg_pool2d(x, kernel_size=(4, 2), divisor_override=8),
    "adaptive": lambda _, x: F.adaptive_avg_pool2d(x, (2, 4)),
    "max_pool2d": lambda _, x: F.max_pool2d(x, 3, stride=2, padding=1),
    "ceil": lambda _, x: F.max_pool2d(x, 3, 2, ceil_mode=True),
    "dilated": lambda _, x: F.max_pool2d(x, 3, 1, 0, 2),
    "iadd": lambda _, x: operator.iadd(x, x.relu()),
    "cat": lambda _, x: torch.cat([x, x.relu()], 1),
    "keywords": lambda _, x: F.relu(input=x),
    "mean": lambda _, x: x.mean((-1, -2), keepdim=True),
    "mean-torch": lambda _, x: torch.mean(x, dim=[2, 3]),
    "slice": lambda _, x: x[:, :, ::3, 0::2],
    "pad": lambda _, x: F.pad(x, (0, 0, 0, 0, 1, 2)),
    "conv2d": lambda self, x: F.conv2d(x, self.conv.weight, self.conv.bias, stride=2),
    "conv2d-padded": lambda self, x: F.conv2d(x, self.conv.weight, None, 1, padding=(2, 1)),
    "channels": lambda _, x: x[:, ::2],
    "channels-part": lambda _, x: x[:, 1:, :, :],
    "chunk": lambda _, x: torch.cat([x.chunk(3, 1)[2], x.chunk(2, dim=1)[1]], 1),
    "split": lambda _, x: x.split([1, 2], dim=1)[1],
    "shuffle": lambda _, x: shuffled(torch.cat([x, x.relu()], 1)),
    "channel_shuffle": lambda _, x: F.channel_shuffle(torch.cat([x, x.relu()], 1), 3),
    "gate": lambda _, x: x * x.mean((2, 3), keepdim=True).sigmoid(),
    "gate-first": lambda _, x: torch.mul(F.hardsigmoid(x.mean((2, 3), keepdim=True)), x),
    "square": lambda _, x: x.mul(x),
    "sigmoid": lambda _, x: torch.sigmoid(x),
    "silu": lambda _, x: F.silu(x, inplace=True),
    "hardswish": lambda _, x: F.hardswish(x),
    "gelu": lambda _, x: F.gelu(x),
    "gelu-tanh": lambda _, x: F.gelu(x, approximate="tanh"),
    "overlap": lambda _, x: F.avg_pool2d(x, 3, 1, 1),
    "overlap-half": lambda _, x: F.avg_pool2d(x, (3, 5), 2, 1, count_include_pad=False),
    "overlap-list": lambda _, x: F.avg_pool2d(x, [3, 3], [1, 1], [1, 1]),
    "overlap-single": lambda _, x: F.avg_pool2d(x, (3,), (1,), (1,)),
    "padded": lambda _, x: F.avg_pool2d(x, 4, 4, 1),
    "rest": lambda _, x: F.avg_pool2d(x, 3),
    "mean-ceil": lambda _, x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True),
    "adaptive-uneven": lambda _, x: F.adaptive_avg_pool2d(x, (3, 5)),
    "adaptive-larger": lambda _, x: F.adaptive_avg_pool2d(x, (11, 8)),
    "enlarged": lambda _, x: F.interpolate(x, scale_factor=2),
    "enlarged-rows": lambda _, x: F.interpolate(x, size=(24, 8), mode="nearest"),
    "numbers": lambda _, x: 1 + 2 * x - 0.5,
    "quotient": lambda _, x: (x + x) / 3,
    "of-the-model": lambda net, x: x * net.mean.view(1, -1, 1, 1) + net.var[:, None, None],
    "made-of-the-model": lambda net, x: x - (net.mean * net.var).reshape(3, 1, 1),
    "same-view": lambda _, x: x.view(x.size(0), 3, 8, 8).contiguous(),
    "batch_norm": lambda net, x: F.batch_norm(x, net.mean, net.var),
}


@pytest.mark.parametrize("name", KNOWN)
def test_functions_compute_what_torch_computes(name):
    graph, net = graph_of(KNOWN[name])
    x = images(3, seed=4)
    expected = net.double()(x.double()).float()
    torch.testing.assert_close(IntegerNetwork(graph)(x), expected)


def test_windows_that_fill_the_map_are_plain_whatever_becomes_of_a_rest():
    graph, _ = graph_of(lambda _, x: F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False))
    assert "AveragePool" in [type(node).__name__ for node in graph]


REFUSED = {
    "tanh": (lambda _, x: x.tanh(), "the function tanh"),
    "conv2d": (lambda self, x: F.conv2d(x, 2 * self.conv.weight), "by what is no weight of the"),
    "linear": (lambda _, x: F.linear(x.flatten(1), x.flatten(1)), "by what is no weight of the"),
    "product": (lambda _, x: x * x.mean(1, keepdim=True), "other axes than rows and columns"),
    "by-rows": (lambda _, x: x * F.avg_pool2d(x, (1, 8)), "not of two maps, or of a map and its"),
    "chunks-of-rows": (lambda _, x: x.chunk(2, 2)[0], "along other axes than the channels"),
    "chunk-of-batch": (lambda _, x: x.chunk(2, 0)[0], "along other axes than the channels"),
    "transpose": (lambda _, x: x.transpose(1, 2), "other axes than those of groups"),
    "part-of-parameter": (
        lambda self, x: F.conv2d(x, self.conv.weight.chunk(3, 0)[0]), "by what is no weight of the",
    ),
    "groups": (lambda _, x: x.view(-1, 3, 1, 8, 8).relu(), "reads channels in groups"),
    "stack": (lambda _, x: torch.stack([x, x], 1), "the function stack"),
    "cat-rows": (lambda _, x: torch.cat([x, x], 2), "joins other axes than the channels"),
    "broadcast": (lambda _, x: x + x.mean((2, 3), keepdim=True), "of two maps of one shape"),
    "alpha": (lambda _, x: torch.add(x, x, alpha=2), "of two maps of one shape"),
    "tensor": (lambda self, x: x + self.place, "not one number, or one for each channel"),
    "from-number": (lambda _, x: 1 - x, "takes its input from a constant"),
    "bilinear": (
        lambda _, x: F.interpolate(x, scale_factor=2, mode="bilinear"), "not by nearest neighbours",
    ),
    "by-more-than-three": (
        lambda _, x: F.interpolate(x, scale_factor=3.05), "enlarges by no whole number",
    ),
    "add-options": (lambda _, x: torch.add(input=x, other=1.0), "calculates with options"),
    "method-options": (lambda _, x: x.add(other=1.0), "calculates with options"),
    "by-zero": (lambda _, x: x / 0, "divides by zero"),
    "divisor-ceil": (
        lambda _, x: F.avg_pool2d(x, 3, ceil_mode=True, divisor_override=9),
        "leave divisor_override out",
    ),
    "by-a-half": (lambda _, x: F.interpolate(x, scale_factor=1.5), "enlarges by no whole number"),
    "beyond": (lambda _, x: F.max_pool2d(x, 1, 3, padding=0, ceil_mode=True), "behind the map"),
    "divisor": (lambda _, x: F.avg_pool2d(x, 2, divisor_override=1), "leave divisor_override out"),
    "dropout": (lambda _, x: F.dropout(x, 0.5), "give it training=self.training"),
    "batch-mean": (lambda _, x: x.mean(0, keepdim=True), "other axes than rows and columns"),
    "mean-of-all": (lambda _, x: x + x.mean(), "other axes than rows and columns"),
    "window": (lambda _, x: x[:, :, 1:, :], "not every n-th row and column"),
    "pad-rows": (lambda _, x: F.pad(x, (1, 1, 1, 1)), "other axes than the channels"),
    "pad-ones": (lambda _, x: F.pad(x, (0, 0, 0, 0, 1, 1), value=1.0), "or not by zeros"),
    "reshape": (lambda _, x: x.view(x.size(0), 8, 8, 3), r"makes \(8, 8, 3\) of \(3, 8, 8\)"),
    "statistics": (lambda _, x: F.batch_norm(x, None, None, training=True), "running statistics"),
    "torch": (
        lambda net, x: torch.batch_norm(
            x, None, None, net.mean, net.var, False, 0.1, 1e-5, False
        ),
        "the function torch.batch_norm",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_other_functions_are_refused_in_one_line(name):
    function, message = REFUSED[name]
    with pytest.raises(SpecError, match=message) as caught:
        graph_of(function)
    text = str(caught.value)
    assert "\n" not in text
    assert "cannot be exported; " in text
