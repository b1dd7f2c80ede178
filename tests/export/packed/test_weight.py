"""Codes of a weight: of latent and of hard values, for every quantizer there is."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qat.export.packed.weight_codes import stored_codes, unpacked, weight_codes
from qat.nn.binary_parametrization import METHODS
from qat.nn.weight import WeightQuantizer
from qat.spec.quant import GRID_BITS, METHOD_BITS

PROJECTIONS = [
    WeightQuantizer(bits, granularity, grid)
    for grid, widths in GRID_BITS.items()
    for bits in widths
    for granularity in ("tensor", "channel")
]
IN_GRAPH = [
    (method, bits, granularity)
    for method, widths in METHOD_BITS.items()
    for bits in widths
    for granularity in METHODS[method].granularities
]
SHAPES = st.sampled_from([(1,), (6,), (3, 1), (3, 5), (2, 3, 4), (4, 2, 3, 3)])
NUMBERS = st.sampled_from([0.0, -0.0, 0.5, -0.5, 1.0, -1.0]) | st.floats(
    -4, 4, width=32, allow_subnormal=False
).filter(lambda x: x == 0 or abs(x) > 1e-6)


@st.composite
def weights(draw):
    shape = draw(SHAPES)
    count = torch.Size(shape).numel()
    return torch.tensor(draw(st.lists(NUMBERS, min_size=count, max_size=count))).view(shape)


def in_graph(case, w):
    method, bits, granularity = case
    quantizer = METHODS[method](bits, granularity)
    quantizer.start(w)
    return quantizer


def named(case):
    return "-".join(map(str, case))


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def same_bits(a, b):
    return torch.equal(a.contiguous().view(torch.int32), b.contiguous().view(torch.int32))


def check_codes(weight, shape):
    """What holds of any codes: they are levels, integers times a unit, and survive packing."""
    levels = weight.levels()
    assert set(levels.flatten().tolist()) <= set(weight.quantizer.levels)
    integers, unit = weight.integers()
    assert integers.dtype == torch.int32
    assert unit == 2.0 ** round(torch.tensor(unit).log2().item())
    assert torch.equal(integers * unit, levels)
    assert int(weight.codes.abs().max()) <= weight.largest_code
    for trits in {False, weight.is_ternary}:
        data = weight.packed(trits=trits)
        back = unpacked(data, weight.scale, shape, weight.quantizer, trits=trits)
        assert torch.equal(back.codes, weight.codes)
        assert same_bits(back.hard(), weight.hard())


@given(weights(), st.sampled_from(PROJECTIONS))
def test_a_latent_weight_gets_the_codes_of_its_projection(w, quantizer):
    weight = weight_codes(w, quantizer)
    # a few numbers may happen to be a point of the grid; then they are taken as hard
    assert torch.equal(weight.hard(), quantizer(w)) or torch.equal(weight.hard(), w)
    check_codes(weight, w.shape)


@given(weights(), st.sampled_from(PROJECTIONS))
def test_a_hard_weight_stays_bit_for_bit(w, quantizer):
    hard = quantizer(w)
    weight = weight_codes(hard, quantizer)
    assert torch.equal(weight.hard(), hard)
    check_codes(weight, w.shape)


@given(weights(), st.sampled_from(IN_GRAPH))
def test_an_in_graph_weight_gets_the_codes_of_its_forward_pass(w, case):
    quantizer = in_graph(case, w)
    weight = weight_codes(w, quantizer)
    assert torch.equal(weight.hard(), quantizer(w))
    assert weight.bits == case[1]
    check_codes(weight, w.shape)


@pytest.mark.parametrize(
    "quantizer", PROJECTIONS, ids=lambda q: f"{q.kind}-{q.bits}-{q.granularity}"
)
def test_a_large_weight_keeps_its_bits_and_its_codes(quantizer):
    w = 0.05 * normal(8, 16, 3, 3, seed=quantizer.bits)
    latent = weight_codes(w, quantizer)
    assert same_bits(latent.hard(), quantizer(w))
    hard = weight_codes(latent.hard(), quantizer)
    assert same_bits(hard.hard(), latent.hard())
    assert torch.equal(hard.codes, latent.codes)
    check_codes(hard, w.shape)


@pytest.mark.parametrize("case", IN_GRAPH, ids=named)
def test_a_large_in_graph_weight_keeps_its_bits(case):
    w = 0.05 * normal(8, 16, 3, 3, seed=case[1])
    quantizer = in_graph(case, w)
    weight = weight_codes(w, quantizer)
    assert torch.equal(weight.hard(), quantizer(w))
    assert weight.codes.unique().numel() <= len(quantizer.levels)
    check_codes(weight, w.shape)


def test_a_weight_that_a_second_projection_would_move_is_read_off():
    quantizer = WeightQuantizer(3)
    hard = quantizer(torch.tensor([-0.49, 0.12, -0.54, -0.05, 0.03]))
    assert quantizer.encode(hard)[0].tolist() == [-2, 1, -2, 0, 0]
    weight = weight_codes(hard, quantizer)
    assert same_bits(weight.hard(), hard)
    assert weight.codes.tolist() == [-3, 1, -3, 0, 0]


@pytest.mark.parametrize("bits", range(3, 9))
def test_uniform_weights_may_move_when_projected_twice_and_none_does_here(bits):
    quantizer = WeightQuantizer(bits, "channel")
    hard = quantizer(normal(64, 27, seed=bits))
    assert (quantizer(hard) != hard).any() == (
        bits > 3
    )  # of few levels a third of the peak is exact
    assert same_bits(weight_codes(hard, quantizer).hard(), hard)


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=9), st.floats(0.125, 9, width=32))
def test_any_scale_of_any_codes_is_read_off(codes, scale):
    hard = torch.tensor(codes) * torch.tensor(scale)
    assert torch.equal(weight_codes(hard, WeightQuantizer(3)).hard(), hard)


@pytest.mark.parametrize("grid", GRID_BITS)
def test_channels_of_zeros_stay_zero_beside_others(grid):
    quantizer = WeightQuantizer(GRID_BITS[grid][-1], "channel", grid)
    w = normal(40, 7)
    w[::3] = 0
    hard = quantizer(w)
    weight = weight_codes(hard, quantizer)
    assert same_bits(weight.hard(), hard)
    assert (weight.scale.flatten()[::3] == 0).all()
    check_codes(weight, w.shape)


def test_a_weight_off_the_grid_is_projected():
    quantizer = WeightQuantizer(3)
    hard = quantizer(torch.tensor([-0.9, 0.2, -0.2]))
    hard[1] = torch.nextafter(hard[1], torch.tensor(1.0))
    assert torch.equal(weight_codes(hard, quantizer).hard(), quantizer(hard))


@pytest.mark.parametrize("bits", range(1, 9))
def test_stored_codes_are_what_the_numbers_stand_for(bits):
    wanted = [-1, 1] if bits == 1 else list(range(-(2 ** (bits - 1)), 2 ** (bits - 1)))
    assert stored_codes(bits).tolist() == wanted
