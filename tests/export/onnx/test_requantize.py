"""Factors and biases of int8 layers: every sum there is, in the runtime's own float32."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from qat.export.integer.graph import Layer
from qat.export.onnx.requantize import int8_layer, requantization
from qat.export.packed.weight_codes import weight_codes
from qat.nn.activation_codes import CodeRule
from qat.nn.weight import WeightQuantizer

X_SCALE = float(torch.tensor(0.3))


def rule(bits=4, step=0.37, shift=0.0, low=0):
    return CodeRule(float(torch.tensor(step)), low, 2**bits - 1, torch.tensor(shift).double())


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def true_code(a, multiplier, offset, what):
    """The network's code of one sum, without any rounding."""
    value = Fraction(multiplier) * a + Fraction(offset)
    steps = value / Fraction(what.step) - Fraction(float(what.shift))
    return min(max(-(-steps.numerator // steps.denominator), what.low), what.high)


def runtime_codes(sums, factor, bias, scale, what):
    """Round-half-even of the float32 product of the int32 sum, as integer kernels do."""
    ratio = np.float32(scale) * np.float32(X_SCALE) / np.float32(what.step)
    whole = (factor * sums + bias).astype(np.int32)
    found = np.rint(whole.astype(np.float32) * ratio)
    return np.clip(found, what.low, what.high).astype(int)


def wrong_codes(found, multiplier, offset, what, peak):
    """Per channel: how many of the sums -peak .. peak get another code."""
    sums = np.arange(-peak, peak + 1)
    wrong = []
    for c in range(len(multiplier)):
        ours = runtime_codes(
            sums, int(found.factor[c]), int(found.bias[c]), float(found.scale[c]), what
        )
        exact = [true_code(int(a), float(multiplier[c]), float(offset[c]), what) for a in sums]
        wrong.append(int((ours != np.array(exact)).sum()))
    return torch.tensor(wrong)


def layer(multiplier, offset, bits=1, inputs=9):
    """A linear layer of `bits` bits; the scale of its weight is left out of the multiplier."""
    weight = normal(len(multiplier), inputs).float()
    codes = weight_codes(weight, WeightQuantizer(bits))
    return Layer(
        name="y",
        inputs=("x",),
        shape=(len(multiplier),),
        path="fc",
        codes=codes,
        weight=codes.levels(),
        multiplier=multiplier,
        offset=offset,
        offset_size=offset.abs(),
    )


@pytest.mark.parametrize("what", [rule(4), rule(1), rule(2, shift=0.5), rule(3, 0.21, 0.5, -7)])
def test_exact_channels_give_the_code_of_every_sum(what):
    """Sums of 9 products of 4-bit codes and signs; multipliers from a tenth of a step to half."""
    multiplier = what.step * torch.logspace(-2, 0, 48, dtype=torch.float64) / 2
    offset = normal(48) * what.step
    found = requantization(multiplier, offset, what, x_scale=X_SCALE, largest=127, peak=9 * 15)
    wrong = wrong_codes(found, multiplier, offset, what, 9 * 15)
    assert int(wrong[found.is_exact].sum()) == 0
    assert float(found.is_exact.double().mean()) > 0.95
    assert int(wrong.max()) <= what.high - what.low  # beside each jump one sum at most


@pytest.mark.parametrize("peak", [1, 2, 5])
def test_a_jump_at_the_largest_sum_counts(peak):
    what = rule(4)
    multiplier = what.step * torch.logspace(-1, 0, 96, dtype=torch.float64)
    offset = normal(96).abs() * what.step
    found = requantization(multiplier, offset, what, x_scale=X_SCALE, largest=127, peak=peak)
    wrong = wrong_codes(found, multiplier, offset, what, peak)
    assert int(wrong[found.is_exact].sum()) == 0


def test_a_layer_of_few_codes_far_from_exact_says_so():
    """With the factor 1 only whole sums are left to choose from, which is not enough for most."""
    what = rule(4)
    multiplier = what.step * torch.logspace(-1, 0, 48, dtype=torch.float64)
    offset = normal(48) * what.step
    found = requantization(multiplier, offset, what, x_scale=X_SCALE, largest=1, peak=200)
    wrong = wrong_codes(found, multiplier, offset, what, 200)
    assert int(wrong[found.is_exact].sum()) == 0
    assert float((wrong[~found.is_exact] > 0).double().mean()) > 0.5


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_int8_layer_with_multipliers_of_both_signs(bits):
    what = rule(4)
    multiplier = 0.2 * normal(64, seed=1)
    offset = normal(64, seed=2)
    node = layer(multiplier, offset, bits)
    found = int8_layer(node, offset, what, x_scale=X_SCALE, x_peak=15, largest_byte=15)
    integers, unit = node.codes.integers()
    assert bool((found.factor.sign() == multiplier.sign()).all())
    most = int(integers.abs().max())
    assert int(found.factor.abs().max()) * most <= 127
    # two products of a uint8 and an int8 that are added up must fit into 16 bits
    assert int(found.factor.abs().max()) * most * 15 * 2 < 2**15
    peak = 15 * int(integers.abs().sum(dim=1).max())
    wrong = wrong_codes(found, multiplier * unit * X_SCALE, offset, what, peak)
    assert int(wrong[found.is_exact].sum()) == 0
    if bits == 1:
        assert float(found.is_exact.double().mean()) > 0.95


@pytest.mark.parametrize("tiny", [0.0, 1e-30, -1e-30])
def test_a_channel_without_weight_gives_its_constant_code(tiny):
    what = rule(4)
    offset = torch.tensor([-3.0, 0.0, 0.1, 0.37, 1.9, 100.0], dtype=torch.float64)
    multiplier = torch.full_like(offset, tiny)
    node = layer(multiplier, offset)
    found = int8_layer(node, offset, what, x_scale=X_SCALE, x_peak=15, largest_byte=15)
    # beside the offset 0, which is a jump, the least sum decides
    assert found.is_exact.tolist() == [True, tiny == 0, True, True, True, True]
    assert float(found.bias.abs().max()) <= what.high + 1
    wrong = wrong_codes(found, 0 * multiplier, offset, what, 9 * 15)
    assert wrong.tolist() == [0] * 6


def test_a_channel_whose_many_sums_span_codes_is_not_taken_for_dead():
    """A step of 33,000 sums: their bias fits into 32 bits, if not times the largest factor."""
    what = rule(8, step=1.0)
    multiplier = torch.tensor([1 / 33_000, -1 / 33_000], dtype=torch.float64)
    node = layer(multiplier / X_SCALE, torch.zeros(2, dtype=torch.float64), inputs=4608)
    found = int8_layer(node, node.offset, what, x_scale=X_SCALE, x_peak=255, largest_byte=255)
    assert bool((found.factor != 0).all())
    for c in range(2):
        sums = np.arange(-4608 * 255, 4608 * 255, 9973)
        sign = 1 if c == 0 else -1
        numbers = abs(int(found.factor[c])), int(found.bias[c]), float(found.scale[c])
        ours = runtime_codes(sums, *numbers, what)
        exact = np.array([true_code(int(a), 1 / 33_000, 0.0, what) for a in sums])
        assert int(np.abs(ours - exact).max()) <= (0 if bool(found.is_exact[c]) else 1), sign


def test_bytes_of_signed_codes_count_from_zero():
    """The byte of code 127 is 255, and its products are what kernels add up in 16 bits."""
    node = layer(torch.full((3,), 0.1, dtype=torch.float64), torch.zeros(3, dtype=torch.float64))
    found = int8_layer(node, node.offset, rule(4), x_scale=X_SCALE, x_peak=127, largest_byte=255)
    assert int(found.factor.abs().max()) * 2 * 255 < 2**15


def test_offsets_that_no_sum_reaches_keep_their_side():
    what = rule(4)
    offset = torch.tensor([-1e4, 1e4, -50.0, 50.0], dtype=torch.float64)
    multiplier = torch.full((4,), 0.01, dtype=torch.float64)
    found = requantization(multiplier, offset, what, x_scale=X_SCALE, largest=127, peak=135)
    assert bool(found.is_exact.all())
    assert wrong_codes(found, multiplier, offset, what, 135).tolist() == [0] * 4


def test_no_channel_is_called_exact_where_float32_cannot_tell_its_sums_apart():
    """The only jump lies at some hundred million sums, where float32 knows every eighth number."""
    what = rule(1, step=0.5)
    multiplier = torch.tensor([0.5 / 1e8, 0.5 / 999], dtype=torch.float64)
    offset = torch.tensor([-0.3, -0.3], dtype=torch.float64)
    found = requantization(multiplier, offset, what, x_scale=X_SCALE, largest=1, peak=2**30)
    assert found.is_exact.tolist() == [False, True]
    for c, jump in enumerate((round(0.3 / 0.5 * 1e8), round(0.3 / 0.5 * 999))):
        near = np.arange(jump - 100, jump + 100)
        numbers = int(found.factor[c]), int(found.bias[c]), float(found.scale[c])
        ours = runtime_codes(near, *numbers, what)
        m, b = float(multiplier[c]), float(offset[c])
        exact = np.array([true_code(int(a), m, b, what) for a in near])
        assert bool((ours == exact).all()) == bool(found.is_exact[c])
