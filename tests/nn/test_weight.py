"""WeightQuantizer: the properties every grid must have, and its errors."""

import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qat.errors import SpecError
from qat.nn.weight import WeightQuantizer
from qat.spec.quant import GRID_BITS

EXACT = [(1, "binary"), (2, "ternary"), (2, "ternary_threshold"), (2, "power_of_two")]
ALL = [(bits, grid) for grid, widths in GRID_BITS.items() for bits in widths]
SHAPES = st.sampled_from([(1,), (6,), (3, 1), (3, 5), (2, 3, 4), (4, 2, 3, 3)])
NUMBERS = st.sampled_from([0.0, -0.0, 0.5, -0.5, 1.0, -1.0]) | st.floats(
    -4, 4, width=32, allow_subnormal=False
).filter(lambda x: x == 0 or abs(x) > 1e-6)


@st.composite
def weights(draw):
    shape = draw(SHAPES)
    count = torch.Size(shape).numel()
    return torch.tensor(draw(st.lists(NUMBERS, min_size=count, max_size=count))).view(shape)


def quantizers(choices):
    return st.builds(
        lambda choice, granularity: WeightQuantizer(choice[0], granularity, choice[1]),
        st.sampled_from(choices),
        st.sampled_from(["tensor", "channel"]),
    )


def bits_of(tensor):
    """The bytes, so that -0.0 and 0.0 differ."""
    return tensor.contiguous().view(torch.int32)


@given(weights(), quantizers(ALL))
def test_decode_of_encode_is_q_bit_for_bit(w, quantizer):
    codes, scale = quantizer.encode(w)
    q = quantizer(w)
    assert codes.dtype == torch.int8
    assert codes.shape == q.shape == w.shape
    assert scale.dtype == torch.float32
    expected = () if quantizer.granularity == "tensor" else (w.shape[0],) + (1,) * (w.ndim - 1)
    assert scale.shape == expected
    assert torch.equal(bits_of(quantizer.decode(codes, scale)), bits_of(q))


@given(weights(), quantizers(ALL))
def test_result_is_on_the_grid(w, quantizer):
    codes, scale = quantizer.encode(w)
    points = torch.tensor(quantizer.levels) * scale.reshape(-1, 1)
    rows = quantizer(w).reshape(scale.numel(), -1)
    assert (rows.unsqueeze(2) == points.unsqueeze(1)).any(dim=2).all()
    assert codes.unique().numel() <= len(quantizer.levels)


@given(weights(), quantizers(ALL), st.integers(-6, 6))
def test_scaling_by_a_power_of_two_is_exact(w, quantizer, power):
    factor = 2.0**power
    assert torch.equal(quantizer(w * factor), quantizer(w) * factor)


@pytest.mark.parametrize(("bits", "grid"), [c for c in ALL if c[1] != "power_of_two"])
def test_scaling_by_any_positive_number(bits, grid):
    w = torch.randn(6, 40, generator=torch.Generator().manual_seed(0))
    quantizer = WeightQuantizer(bits, "channel", grid)
    codes, scale = quantizer.encode(w)
    scaled_codes, scaled = quantizer.encode(w * 3.7)
    assert torch.equal(codes, scaled_codes)
    torch.testing.assert_close(scaled, scale * 3.7)


@given(weights(), quantizers(ALL))
def test_per_channel_equals_per_tensor_of_each_channel(w, quantizer):
    channel = WeightQuantizer(quantizer.bits, "channel", quantizer.grid)
    tensor = WeightQuantizer(quantizer.bits, "tensor", quantizer.grid)
    expected = torch.stack([tensor(row) for row in w])
    torch.testing.assert_close(channel(w), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("choice", EXACT, ids=lambda c: c[1])
@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("share", [1e-5, 0.3, 0.6, 0.99])
def test_points_towards_the_grid_keep_their_codes(choice, granularity, share):
    quantizer = WeightQuantizer(choice[0], granularity, choice[1])
    for seed in range(20):
        w = torch.randn(4, 50, generator=torch.Generator().manual_seed(seed)) * 0.1
        codes, scale = quantizer.encode(w)
        moved, moved_scale = quantizer.encode(torch.lerp(w, quantizer(w), share))
        assert torch.equal(codes, moved)
        torch.testing.assert_close(moved_scale, scale, rtol=1e-5, atol=0)


@pytest.mark.parametrize(("bits", "grid"), ALL)
def test_grid_points_with_the_top_level_stay(bits, grid):
    quantizer = WeightQuantizer(bits, "tensor", grid, mu=1.0, rounds=20)
    w = torch.tensor(quantizer.levels) * 0.25
    assert torch.equal(quantizer(w), w) or grid == "uniform"
    if grid == "uniform":  # alternation may stop at a coarser grid; the scale still fits the codes
        codes, scale = quantizer.encode(w)
        best = (w * codes).sum() / codes.float().square().sum()
        torch.testing.assert_close(scale, best)


@pytest.mark.parametrize(("bits", "grid"), ALL)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtype_is_kept_and_nothing_is_recorded(bits, grid, dtype):
    w = torch.randn(3, 2, 3, 3, dtype=torch.float32).to(dtype).requires_grad_()
    quantizer = WeightQuantizer(bits, "channel", grid)
    q = quantizer(w)
    assert q.dtype == dtype
    assert not q.requires_grad
    assert q.data_ptr() != w.data_ptr()
    assert torch.equal(q, quantizer.decode(*quantizer.encode(w), dtype=dtype))


@pytest.mark.parametrize(("bits", "grid"), ALL)
def test_memory_order_does_not_matter(bits, grid):
    w = torch.randn(4, 3, 3, 3)
    quantizer = WeightQuantizer(bits, "channel", grid)
    assert torch.equal(quantizer(w.to(memory_format=torch.channels_last)), quantizer(w))


def test_binary_zeros_are_positive():
    w = torch.tensor([0.0, -0.0, -1.0, 3.0])
    assert WeightQuantizer(1)(w).tolist() == [1, 1, -1, 1]


@pytest.mark.parametrize(
    ("bits", "grid"), [(1, "binary"), (2, "ternary"), *((b, "uniform") for b in range(3, 9))]
)
def test_grid_is_chosen_by_bits(bits, grid):
    w = torch.randn(3, 40)
    assert WeightQuantizer(bits).kind == grid
    assert torch.equal(WeightQuantizer(bits)(w), WeightQuantizer(bits, grid=grid)(w))


def test_levels():
    assert WeightQuantizer(1).levels == (-1.0, 1.0)
    assert WeightQuantizer(2).levels == (-1.0, 0.0, 1.0)
    assert WeightQuantizer(3).levels == (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0)
    assert WeightQuantizer(3, grid="power_of_two").levels == (-1.0, -0.5, 0.0, 0.5, 1.0)


def test_power_of_two_codes_are_exponent_indices():
    quantizer = WeightQuantizer(4, grid="power_of_two", mu=1.0)
    w = torch.tensor([1.0, -0.5, 0.25, -0.125, 0.0])
    codes, scale = quantizer.encode(w)
    assert codes.tolist() == [4, -3, 2, -1, 0]
    assert scale.item() == 1.0


@pytest.mark.parametrize(
    "options",
    [
        {"bits": 0},
        {"bits": 9},
        {"bits": 2, "grid": "binary"},
        {"bits": 1, "grid": "ternary"},
        {"bits": 3, "grid": "ternary_threshold"},
        {"bits": 1, "grid": "uniform"},
        {"bits": 7, "grid": "power_of_two"},
        {"bits": 2, "grid": "hexagonal"},
        {"bits": 2, "granularity": "layer"},
        {"bits": 4, "grid": "power_of_two", "mu": 0.0},
        {"bits": 4, "rounds": 0},
    ],
)
def test_impossible_options_raise(options):
    with pytest.raises(SpecError):
        WeightQuantizer(**options)


def test_impossible_weights_raise():
    with pytest.raises(SpecError, match="empty"):
        WeightQuantizer(1)(torch.zeros(0, 3))
    with pytest.raises(SpecError, match="scalar"):
        WeightQuantizer(1, "channel")(torch.tensor(1.0))


def test_a_fit_that_answers_in_fresh_memory_serves_as_one_that_writes():
    from qat.functional.grid import fit_uniform
    from qat.nn.weight import _plain

    rows, target = torch.randn(3, 50), torch.empty(3, 50)
    plain = _plain(lambda rows, q: fit_uniform(rows, q.bits, rounds=q.rounds))
    quantizer = WeightQuantizer(4, "channel", "uniform")
    values, scale = plain(rows, quantizer)
    assert torch.equal(bits_of(values * scale), bits_of(quantizer(rows)))
    written, again = plain(rows, quantizer, out=target, scaled=True)
    assert written is target
    assert torch.equal(again, scale)
    assert torch.equal(bits_of(target), bits_of(quantizer(rows)))


def test_equal_options_are_equal_objects():
    assert WeightQuantizer(2, "channel", mu=0.5) == WeightQuantizer(2, "channel", mu=0.5)
    assert pickle.loads(pickle.dumps(WeightQuantizer(4))) == WeightQuantizer(4)
