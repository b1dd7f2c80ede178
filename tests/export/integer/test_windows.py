"""Means over any windows, enlarged maps and numbers of the model, in whole numbers."""

import pytest
import torch
from torch import nn

from qat.errors import SpecError
from qat.export.integer.graph import Layer, WindowMean, check_exact_form
from qat.export.integer.network import IntegerNetwork, moved_codes
from qat.export.integer.numbers import Combination, Term
from qat.export.integer.windows import window_mean, window_multiple
from support.exported import SPECS, exported, float_codes, images, in_double

ZERO = torch.zeros((), dtype=torch.float64)
GENERATOR = torch.Generator().manual_seed(3)
NAMES = ("w1a4", "w4a4-channel", "w8a8", "w1a1-shift", "lsq", "power-of-two", "input-bits")


class Pooled(nn.Module):
    """Branches as of Inception and HRNet: overlapping means, enlarged maps, own numbers."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.one, self.two = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.small = nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), nn.BatchNorm2d(8))
        self.scale = nn.Parameter(torch.linspace(0.5, 2, 8))
        self.last = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(72, 5))

    def forward(self, x):
        x = self.stem(x)
        one = self.one(nn.functional.avg_pool2d(x, 3, 1, 1))
        two = self.two(nn.functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False))
        low = nn.functional.interpolate(self.small(x), scale_factor=2, mode="nearest")
        x = torch.relu((one + two) / 2 + low * self.scale.view(1, -1, 1, 1))
        # of a sum with an offset, whose padding has none
        x = nn.functional.avg_pool2d(self.last(x) + 0.25, 3, 2, 1)
        return self.head(torch.relu(x))


@pytest.mark.parametrize("spec", NAMES)
@pytest.mark.product
def test_codes_of_pooled_networks_are_the_trained_networks(spec):
    net, graph = exported(Pooled, SPECS[spec])
    kinds = {type(node).__name__ for node in graph}
    assert {"WindowMean", "Repeat"} <= kinds
    network, x = IntegerNetwork(graph), images(16, seed=5)
    net = in_double(net, graph)
    counts = moved_codes(network, x, float_codes(net, network, x.double()))
    assert sum(total for _, total in counts.values()) > 10_000
    assert sum(moved for moved, _ in counts.values()) == 0
    with torch.no_grad():
        theirs = net(x.double()).float()
    torch.testing.assert_close(network(x), theirs, rtol=0, atol=1e-5 * float(theirs.abs().max()))
    with pytest.raises(SpecError, match="cannot be exported in this form"):
        check_exact_form(graph)


POOLS = {
    "zeros": nn.AvgPool2d(3, 2, 1),
    "no zeros": nn.AvgPool2d((3, 4), (1, 2), (1, 2), count_include_pad=False),
    "ceil": nn.AvgPool2d(3, 2, 1, ceil_mode=True),
    "uneven": nn.AdaptiveAvgPool2d((3, 5)),
    "larger": nn.AdaptiveAvgPool2d((10, 9)),
}


@pytest.mark.parametrize("name", POOLS)
def test_means_over_windows_are_whole_numbers_over_their_multiple(name):
    pool, codes = POOLS[name], torch.randint(-7, 8, (2, 3, 7, 6), generator=GENERATOR)
    after = pool(codes.double())
    multiple = window_multiple(pool, codes.shape[1:], after.shape[1:])
    has_zeros = name in ("zeros", "ceil")
    node = WindowMean(
        name="mean", inputs=("x",), shape=tuple(after.shape[1:]), pool=pool, multiple=multiple,
        has_zeros=has_zeros, place="the mean",
    )  # fmt: skip
    value = Combination((Term(codes.int(), ZERO + 0.5, 7),), ZERO)
    term = window_mean(node, value).terms[0]
    assert term.integers.dtype == torch.int32
    assert int(term.integers.abs().max()) <= term.peak == 7 * multiple
    assert float(term.multiplier) == 0.5 / multiple
    # no window's mean is rounded
    torch.testing.assert_close(term.integers * term.multiplier, 0.5 * after, rtol=0, atol=1e-12)
    smaller = [p for p in (2, 3, 5) if multiple % p == 0 and _is_whole(after, multiple // p)]
    assert not smaller  # and the multiple is the least one


def _is_whole(values, factor):
    return float((values * factor - (values * factor).round()).abs().max()) < 1e-9


def test_sums_beyond_32_bits_behind_a_mean_are_left_to_floats():
    def make():
        layers = nn.Sequential(
            nn.Conv2d(3, 256, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Conv2d(256, 2, 3),
            nn.Flatten(), nn.Linear(8, 5),
        )  # fmt: skip
        nn.init.ones_(layers[3].weight)
        return layers

    net, graph = exported(make, SPECS["w8a8"], images(2, size=11))
    mean = next(node for node in graph if isinstance(node, WindowMean))
    layer = next(node for node in graph if isinstance(node, Layer) and mean.name in node.inputs)
    codes, _ = layer.codes.integers()
    assert mean.multiple == 144
    assert 144 * 255 < 2**16 < 2**31 < 144 * 255 * int(codes[0].abs().sum())
    network, x = IntegerNetwork(graph), images(4, size=11, seed=2)
    theirs = in_double(net, graph)(x.double()).float()
    torch.testing.assert_close(network(x), theirs.detach(), rtol=0, atol=1e-5)
