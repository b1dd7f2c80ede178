"""What enters each product, and how many multiply-accumulates it makes."""

import operator
import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from qat.nn.activation import ActivationQuantizer
from qat.quantize.modes import evaluating
from qat.quantize.products import trace

IMAGES = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))


class Between(nn.Module):
    """A quantizer, then `path`, then a linear or conv layer named `layer`."""

    def __init__(self, path, layer):
        super().__init__()
        self.first, self.quant = nn.Conv2d(1, 4, 1), ActivationQuantizer(3)
        self.path, self.layer = path, layer

    def forward(self, x):
        return self.layer(self.path(self.quant(self.first(x))))


class Path(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def changed(x, change):
    """A view of levels that are changed in place behind its back."""
    view = x.view(x.shape)
    change(x)
    return view


QUANTIZED, POOLED = ("quantized", 3, "quant"), ("pooled", 3, "quant")
IMAGE, FLOAT = ("image", 32, ""), ("float", 32, "")


def sources(net, images=IMAGES):
    """Name of each layer -> what feeds it: kind, bits, and name of the quantizer."""
    found = {}
    for product in trace(net, images).products:
        (value,) = product.inputs
        found[product.module] = (value.kind, value.bits, value.name)
    return found


def macs(net, images=IMAGES):
    """Name of each layer -> its multiply-accumulates per image."""
    found = {}
    for product in trace(net, images).products:
        found[product.module] = found.get(product.module, 0) + product.macs
    return found


CONV_PATHS = {
    "nothing": (nn.Identity(), QUANTIZED),
    "max pool": (nn.MaxPool2d(2), QUANTIZED),
    "dropout": (nn.Dropout(0.5), QUANTIZED),
    "padding": (nn.ZeroPad2d(1), QUANTIZED),
    "concatenation": (Path(lambda x: torch.cat([x[:, :2], x[:, 2:]], 1)), QUANTIZED),
    "channels last": (Path(lambda x: x.permute(0, 2, 3, 1).permute(0, 3, 1, 2)), QUANTIZED),
    "average pool": (nn.AvgPool2d(2), POOLED),
    "adaptive average": (nn.AdaptiveAvgPool2d(2), POOLED),
    "two averages": (nn.Sequential(nn.AvgPool2d(2), nn.AvgPool2d(2)), FLOAT),
    "batch norm": (nn.BatchNorm2d(4), FLOAT),
    "sum": (Path(lambda x: x + x), FLOAT),
    "mixed": (Path(lambda x: torch.cat([x[:, :2], x[:, 2:] * 2], 1)), FLOAT),
    "in-place": (Path(lambda x: x.clone().mul_(2)), FLOAT),
    "in-place sum": (Path(lambda x: changed(x, lambda y: operator.iadd(y, y))), FLOAT),
    "in-place option": (Path(lambda x: changed(x, lambda y: F.elu(y, inplace=True))), FLOAT),
    "out": (Path(lambda x: changed(x, lambda y: torch.mul(y, 2, out=y))), FLOAT),
    "foreach": (Path(lambda x: changed(x, lambda y: torch._foreach_mul_([y], 2))), FLOAT),
    "gelu": (nn.GELU(), FLOAT),
    "upsampling": (nn.Upsample(scale_factor=2, mode="bilinear"), FLOAT),
}


@pytest.mark.parametrize("name", CONV_PATHS)
def test_sources_of_a_convolution(name):
    path, expected = CONV_PATHS[name]
    found = sources(Between(path, nn.Conv2d(4, 2, 1)))
    assert found["layer"] == expected
    assert found["first"] == IMAGE


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (nn.Flatten(), QUANTIZED),
        (lambda x: x.reshape(3, -1), QUANTIZED),
        (lambda x: x.view(3, 256), QUANTIZED),
        (lambda x: x.mean((2, 3)).repeat(1, 64), POOLED),
        (lambda x: F.layer_norm(x.flatten(1), (256,)), FLOAT),
    ],
)
def test_sources_of_a_linear_layer(function, expected):
    path = function if isinstance(function, nn.Module) else Path(function)
    assert sources(Between(path, nn.Linear(256, 2)))["layer"] == expected


def test_a_residual_sum_is_float_until_the_next_quantizer():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.q1, self.b = nn.Conv2d(1, 2, 1), ActivationQuantizer(2), nn.Conv2d(2, 2, 1)
            self.c, self.q2, self.d = nn.Conv2d(2, 2, 1), ActivationQuantizer(5), nn.Conv2d(2, 2, 1)

        def forward(self, x):
            y = self.q1(self.a(x))
            y = self.b(y) + y
            return self.d(self.q2(y)) + self.c(y)

    assert sources(Block()) == {
        "a": IMAGE,
        "b": ("quantized", 2, "q1"),
        "d": ("quantized", 5, "q2"),
        "c": FLOAT,
    }


@pytest.mark.parametrize(
    ("layer", "count"),
    [
        (nn.Conv2d(4, 6, 3, padding=1), 8 * 8 * 6 * 4 * 9),
        (nn.Conv2d(4, 6, 3), 6 * 6 * 6 * 4 * 9),
        (nn.Conv2d(4, 6, 3, stride=2, padding=1), 4 * 4 * 6 * 4 * 9),
        (nn.Conv2d(4, 8, 3, padding=1, groups=4), 8 * 8 * 8 * 1 * 9),
        (nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=4), 8 * 8 * 4 * 9),
    ],
)
def test_macs_of_convolutions(layer, count):
    for images in (1, 3):
        found = macs(Between(nn.Identity(), layer), IMAGES[:images])
        assert found == {"first": 8 * 8 * 4, "layer": count}


def test_macs_of_linear_layers():
    tokens = Path(lambda x: x.flatten(2).transpose(1, 2))
    assert macs(Between(tokens, nn.Linear(4, 5)))["layer"] == 64 * 4 * 5
    assert macs(Between(nn.Flatten(), nn.Linear(256, 5)))["layer"] == 256 * 5


def test_macs_are_per_image_where_windows_fill_the_batch_axis():
    """As in Swin: (N, C, 8, 8) -> (4 N windows, 16 tokens, C)."""
    windows = Path(
        lambda x: x.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 4, 5, 1).reshape(-1, 16, 4)
    )
    for count in (1, 3):
        found = macs(Between(windows, nn.Linear(4, 5)), IMAGES[:count])
        assert found["layer"] == 64 * 4 * 5


def test_a_layer_called_twice_makes_two_products():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.quant = nn.Conv2d(1, 1, 1), ActivationQuantizer(2)

        def forward(self, x):
            return self.layer(self.quant(self.layer(x)))

    first, second = trace(Twice(), IMAGES).products
    assert (first.macs, second.macs) == (64, 64)
    assert [p.inputs[0].kind for p in (first, second)] == ["image", "quantized"]


def test_trace_leaves_the_network_as_it_was():
    net = Between(nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))
    net.path.eval()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    trace(net, IMAGES)
    assert net.training
    assert not net.path.training
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_a_failing_forward_leaves_no_hooks():
    net = Between(nn.Identity(), nn.Conv2d(9, 2, 1))
    with pytest.raises(RuntimeError):
        trace(net, IMAGES)
    assert net.training
    assert not any(m._forward_hooks for m in net.modules())


def test_evaluating():
    net = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
    with evaluating(net):
        assert not any(m.training for m in net.modules())
    assert [m.training for m in net] == [True, False]


def test_no_activation_is_kept_alive():
    entered, most = [], 0

    class Kept(nn.Conv2d):
        def forward(self, x):
            entered.append(weakref.ref(x))
            return super().forward(x)

    def count(product):
        nonlocal most
        most = max(most, sum(ref() is not None for ref in entered))

    trace(nn.Sequential(*(Kept(1, 1, 1) for _ in range(6))), IMAGES, watch=count)
    assert most <= 2
