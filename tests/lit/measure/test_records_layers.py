"""What is recorded of a layer, against brute force."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from qat.lit.measure.layer_records import (
    BINS,
    LayerWeight,
    alphas,
    bin_width,
    histogram,
    quantities,
)
from qat.lit.measure.records import snapshot_epochs
from qat.nn.activation import ActivationQuantizer
from qat.nn.binary_parametrization import METHODS
from qat.nn.learned_clip import DorefaActivation, LsqActivation, PactActivation
from qat.nn.sign_activation import SignActivation
from qat.nn.weight import WeightQuantizer
from qat.spec.quant import GRID_BITS, METHOD_BITS

GRIDS = [(grid, bits) for grid, every in GRID_BITS.items() for bits in every]
METHOD_CASES = [(m, bits) for m, every in METHOD_BITS.items() for bits in every if m in METHODS]


def projected(grid, bits, granularity="tensor"):
    return WeightQuantizer(bits, granularity, grid)


def in_graph(method, bits, w):
    quantizer = METHODS[method](bits)
    quantizer.start(w)
    return quantizer


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# -- histograms -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("grid", "bits"), GRIDS)
@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_bins_by_brute_force(grid, bits, granularity):
    w = normal(6, 50) * torch.linspace(0.01, 3, 6)[:, None]  # channels of other sizes
    quantizer = projected(grid, bits, granularity)
    found = histogram(LayerWeight.encoded("layer", w, quantizer))
    low, width = -found.reach, 2 * found.reach / 41
    scale = quantizer.encode(w)[1].expand(6, *(1 for _ in range(w.ndim - 1)))
    expected = [0] * 41
    for row, s in zip(w.tolist(), scale.flatten().tolist(), strict=True):
        for value in row:
            place = math.floor((value / s - low) / width)
            expected[min(max(place, 0), 40)] += 1
    # float32 here, float64 there: a weight on an edge may change sides
    assert sum(abs(a - b) for a, b in zip(found.counts, expected, strict=True)) <= 2
    assert sum(found.counts) == w.numel()
    assert len(found.counts) == BINS == 41


def test_what_lies_beyond_is_in_the_outer_bins():
    w = torch.cat([torch.full((900,), 0.01), torch.full((30,), 9.0), torch.full((70,), -9.0)])
    found = histogram(LayerWeight.encoded("layer", w, projected("binary", 1)))
    assert (found.counts[0], found.counts[-1], sum(found.counts)) == (70, 30, 1000)


@pytest.mark.parametrize(("grid", "bits"), GRIDS)
def test_bins_cover_the_grid_with_a_margin(grid, bits):
    levels = projected(grid, bits).levels
    width = bin_width(levels)
    assert width * 20.5 >= 1.3 * max(map(abs, levels))
    places = [level / width for level in levels if grid != "power_of_two" or abs(level) > 0.1]
    # at centres, or at least on no edge
    assert all(abs(abs(place - round(place)) - 0.5) > 0.01 for place in places)
    if len(levels) <= 31 and grid != "power_of_two":
        assert all(abs(place - round(place)) < 1e-9 for place in places)


@pytest.mark.parametrize(("method", "bits"), METHOD_CASES)
def test_in_graph_levels_are_where_their_weights_are(method, bits):
    """The level nearest to what is drawn is the level that the network uses."""
    w = normal(400) * 0.2
    quantizer = in_graph(method, bits, w)
    if method == "biper":
        assert histogram(LayerWeight.encoded("layer", w, quantizer)) is None
        return
    codes, scale = quantizer.encode(w)
    used = quantizer.decode(codes, scale) / scale
    drawn = w / scale
    if method == "dorefa" and bits > 1:
        drawn = (2**bits - 1) * w.tanh() / w.tanh().abs().max()
    levels = torch.tensor(quantizer.levels)
    nearest = levels[(drawn[:, None] - levels).abs().argmin(dim=1)]
    assert float((nearest - used).abs().max()) < 1e-3 * max(levels)
    found = histogram(LayerWeight.encoded("layer", w, quantizer))
    width = 2 * found.reach / BINS
    centres = torch.arange(-20, 21) * width
    places = (drawn[:, None] - centres).abs().argmin(dim=1)
    assert sum(abs(a - b) for a, b in zip(
        found.counts, torch.bincount(places, minlength=41).tolist(), strict=True)) <= 2  # fmt: skip


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_weights_that_are_all_zero(granularity):
    weight = LayerWeight.encoded("layer", torch.zeros(3, 4), projected("uniform", 4, granularity))
    assert histogram(weight).counts[20] == 12
    assert quantities(weight, None) == {"distance": 0.0, "scale": 0.0}


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(("grid", "bits"), GRIDS)
@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_a_weight_that_is_not_finite_is_on_no_grid(grid, bits, granularity, value):
    w = normal(6, 50)
    w[2, 3] = value
    weight = LayerWeight.encoded("layer", w, projected(grid, bits, granularity))
    assert math.isnan(quantities(weight, None)["distance"])
    assert histogram(weight) is None


@given(st.integers(1, 400), st.integers(2, 20))
def test_snapshots_are_spread_evenly_and_end_with_the_phase(epochs, count):
    found = sorted(snapshot_epochs(epochs, count))
    assert found[-1] == epochs
    assert found[0] >= 1
    assert len(found) == min(epochs, count - 1)
    gaps = [b - a for a, b in zip([0, *found], found, strict=False)]
    assert max(gaps) - min(gaps) <= 1


# -- quantities -----------------------------------------------------------------------------------


def test_distance_flips_and_scale_by_hand():
    binary = projected("binary", 1)
    weight = LayerWeight.encoded("layer", torch.tensor([3.0, -1.0, 2.0, -2.0]), binary)
    # Q(w) = 2 sign(w): the gap is (1, 1, 0, 0)
    expected = {"scale": 2.0, "distance": math.sqrt(2 / 18)}
    assert quantities(weight, None) == pytest.approx(expected)
    moved = LayerWeight.encoded("layer", torch.tensor([3.0, 1.0, 2.0, -2.0]), binary)
    assert quantities(moved, weight.codes)["flip_rate"] == 0.25


def test_the_scale_is_the_mean_over_channels():
    w = torch.tensor([[1.0, -1.0], [3.0, -3.0]])
    found = quantities(LayerWeight.encoded("layer", w, projected("binary", 1, "channel")), None)
    assert found == {"scale": 2.0, "distance": 0.0}


def test_alpha_is_the_step_that_the_network_uses():
    net = nn.ModuleDict({
        "staircase": ActivationQuantizer(4), "small": ActivationQuantizer(4),
        "lsq": LsqActivation(4), "pact": PactActivation(4), "dorefa": DorefaActivation(2),
        "sign": SignActivation(),
    })  # fmt: skip
    with torch.no_grad():
        net["staircase"].step.fill_(0.25)
        net["small"].step.fill_(-1.0)
        net["lsq"].scale.fill_(0.5)
        net["pact"].clip.fill_(6.0)
    found = alphas(net)
    assert found == pytest.approx(
        {"staircase": 0.25, "small": 1e-3, "lsq": 0.5, "pact": 0.4, "dorefa": 1 / 3}
    )
    for name, alpha in found.items():
        values = net[name](torch.linspace(0.001, 12, 5000)).detach().unique()
        assert float(values.diff().min()) == pytest.approx(alpha, rel=1e-3)
