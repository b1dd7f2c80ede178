"""Fixed-point sums against fractions, which know no rounding."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qat.errors import SpecError
from qat.export.integer.numbers import Combination, Term, over_channels

LARGEST = 2**31 - 1
finite = {"allow_nan": False, "allow_infinity": False, "width": 64}


def numbers(low, high):
    return st.floats(low, high, **finite)


@st.composite
def combinations(draw):
    """One to three terms of a few images with two channels, with the peaks that they reach."""
    terms = []
    for _ in range(draw(st.integers(1, 3))):
        peak = draw(st.sampled_from([1, 15, 1000, 2**20, LARGEST]))
        values = draw(st.lists(st.integers(-peak, peak), min_size=6, max_size=6))
        values[0] = draw(st.sampled_from([-peak, peak]))
        per_channel = draw(st.booleans())
        size = 2 if per_channel else 1
        multiplier = draw(st.lists(numbers(-100, 100), min_size=size, max_size=size))
        multiplier = torch.tensor(multiplier, dtype=torch.float64)
        integers = torch.tensor(values, dtype=torch.int32).view(3, 2)
        terms.append(Term(integers, multiplier if per_channel else multiplier[0], peak))
    offset = draw(st.lists(numbers(-1e4, 1e4), min_size=2, max_size=2))
    return Combination(tuple(terms), torch.tensor(offset, dtype=torch.float64))


def at(values, channel):
    return Fraction(float(values if values.ndim == 0 else values[channel]))


def exact(combination, image, channel, step, shift):
    """Value / step - shift as a fraction."""
    value = at(combination.offset, channel)
    for term in combination.terms:
        value += at(term.multiplier, channel) * int(term.integers[image, channel])
    return value / Fraction(step) - Fraction(shift)


def bound(combination, channel, places, step, shift):
    """The error that `fixed_point` says it keeps."""
    steps = Fraction(step)
    largest = abs(at(combination.offset, channel)) / steps + Fraction(shift)
    peaks = Fraction(0)
    for term in combination.terms:
        # the number of places follows the largest channel, the quotients' error each channel
        largest += abs(at(term.multiplier, channel)) / steps * term.peak
        peaks += term.peak
    return (1 + peaks) / 2 / Fraction(2) ** places + largest / 2**52


@settings(max_examples=80, deadline=None)
@given(combinations(), numbers(1e-3, 5), st.sampled_from([0.0, 0.5]))
def test_fixed_point_keeps_its_stated_error(combination, step, shift):
    z, places = combination.fixed_point(step, torch.tensor(shift, dtype=torch.float64))
    assert z.dtype == torch.int64
    for image in range(3):
        for channel in range(2):
            ours = Fraction(int(z[image, channel])) / Fraction(2) ** places
            error = abs(ours - exact(combination, image, channel, step, shift))
            assert error <= bound(combination, channel, places, step, shift)


@settings(max_examples=80, deadline=None)
@given(combinations(), numbers(1e-3, 5))
def test_no_multiply_add_leaves_63_bits_even_at_the_peaks(combination, step):
    """The same multiply-adds in Python's integers, which have no end, at the worst signs."""
    _, places = combination.fixed_point(step, torch.zeros((), dtype=torch.float64))
    for channel in range(2):
        reach = abs(round(at(combination.offset, channel) / Fraction(step) * 2**places)) + 1
        for term in combination.terms:
            factor = abs(at(term.multiplier, channel)) / Fraction(step) * 2**places
            reach += (round(factor) + 1) * term.peak
        assert reach < 2**62


def test_the_number_of_places_grows_as_values_shrink():
    def places(multiplier, peak=100):
        term = Term(
            torch.tensor([[peak]], dtype=torch.int32), torch.tensor(multiplier).double(), peak
        )
        zero = torch.zeros((), dtype=torch.float64)
        return Combination((term,), zero).fixed_point(1.0, zero)[1]

    assert places(1e6) < places(1.0) < places(1e-6)
    assert places(1e-6) >= 58  # a value below one step leaves nearly all bits behind the point
    # 100 * 1.0 + 1 < 2^7, so that 61 - 7 places are left
    assert places(1.0) == 54


def test_a_peak_beyond_32_bits_is_refused():
    one = torch.ones((1, 1), dtype=torch.int32)
    scale = torch.tensor(1.0, dtype=torch.float64)
    assert Term(one, scale, LARGEST).peak == LARGEST
    with pytest.raises(SpecError, match=r"2,147,483,648, which does not fit into 32 bits"):
        Term(one, scale, LARGEST + 1)
    half = Combination((Term(one, scale, 2**30),), torch.zeros((), dtype=torch.float64))
    with pytest.raises(SpecError, match="fewer bits"):
        half.mapped(lambda t: t + t, growth=2)


def test_real_is_the_sum_of_terms_and_offset():
    a = Term(torch.tensor([[[[1, 2]], [[3, 4]]]]).int(), torch.tensor([0.5, -2.0]).double(), 4)
    b = Term(torch.tensor([[[[10, 20]], [[30, 40]]]]).int(), torch.tensor(0.125).double(), 40)
    first = Combination((a,), torch.tensor([1.0, 0.0]).double())
    second = Combination((b,), torch.tensor(0.25).double())
    # 0.5 * 1 + 1 + 10 / 8 + 0.25 and so on
    assert (first + second).real().squeeze().tolist() == [[3.0, 4.75], [-2.0, -2.75]]
    assert (first + second).is_scaled_integer is False
    assert Combination((b,), torch.zeros(()).double()).is_scaled_integer is True


def test_scaled_is_a_multiply_add_per_channel():
    term = Term(torch.tensor([[2, 3]]).int(), torch.tensor(0.5).double(), 3)
    value = Combination((term,), torch.tensor([1.0, -1.0]).double())
    scaled = value.scaled(torch.tensor([2.0, -4.0]).double(), torch.tensor([0.0, 7.0]).double())
    assert scaled.real().tolist() == [[4.0, 5.0]]
    assert scaled.terms[0].integers is term.integers


def test_values_per_channel_broadcast_over_axis_1():
    like = torch.zeros(2, 3, 4, 5)
    assert over_channels(torch.ones(3), like).shape == (3, 1, 1)
    assert over_channels(torch.ones(3), torch.zeros(2, 3)).shape == (3,)
    assert over_channels(torch.ones(()), like).shape == ()
