"""Spread, intervals, paired differences and Holm's correction, against independent arithmetic."""

import itertools
import math
import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qat.report.compare.statistics import (
    deviation,
    holm,
    interval_of_mean,
    mean,
    paired_difference,
    prediction_interval,
    summarize,
    t_quantile,
    two_sided_p,
)

FRACTIONS = st.lists(st.floats(0, 1), min_size=2, max_size=9)
P_VALUES = st.lists(st.none() | st.floats(0, 1), max_size=6)


@given(FRACTIONS)
def test_mean_and_deviation_are_those_of_the_standard_library(values):
    assert mean(values) == pytest.approx(statistics.fmean(values), abs=1e-15)
    assert deviation(values) == pytest.approx(statistics.stdev(values), abs=1e-9)


def test_intervals_by_hand():
    # mean 3, sd sqrt(2.5), t(0.975, 4) = 2.776445
    found = summarize([1, 2, 3, 4, 5])
    half = 2.776445 * math.sqrt(2.5 / 5)
    assert found.interval == pytest.approx((3 - half, 3 + half), abs=1e-5)
    further = 2.776445 * math.sqrt(2.5 * 6 / 5)
    assert found.prediction == pytest.approx((3 - further, 3 + further), abs=1e-5)
    assert (found.n, found.mean) == (5, 3)
    # t(0.95, 4) = 2.131847
    narrow = interval_of_mean([1, 2, 3, 4, 5], level=0.9)
    assert narrow.high == pytest.approx(3 + 2.131847 * math.sqrt(0.5), abs=1e-5)


def test_one_value_has_no_interval_and_none_no_summary():
    found = summarize([0.5])
    assert (found.n, found.mean) == (1, 0.5)
    assert (found.sd, found.interval, found.prediction) == (None, None, None)
    assert summarize([]) is None
    assert prediction_interval([]) is None


def test_intervals_hold_what_they_promise():
    random.seed(3)
    hits = {"mean": 0, "next": 0}
    for _ in range(2000):
        *values, further = [random.gauss(0.9, 0.01) for _ in range(4)]
        interval, prediction = interval_of_mean(values), prediction_interval(values)
        hits["mean"] += interval.low <= 0.9 <= interval.high
        hits["next"] += prediction.low <= further <= prediction.high
    # 0.95 +- 4 standard errors of a share over 2000 draws
    for count in hits.values():
        assert abs(count / 2000 - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 2000)


def test_a_paired_difference_by_hand():
    # differences 1, 2, 3: mean 2, sd 1, t = 2 sqrt(3); for two degrees p = 1 - t / sqrt(2 + t^2)
    found = paired_difference([2, 4, 6], [1, 2, 3])
    t = 2 * math.sqrt(3)
    assert (found.n, found.mean, found.sd) == (3, 2, 1)
    assert found.p == pytest.approx(1 - t / math.sqrt(2 + t * t))
    half = 4.302653 / math.sqrt(3)
    assert found.interval == pytest.approx((2 - half, 2 + half), abs=1e-5)


@given(FRACTIONS, st.randoms(use_true_random=False))
def test_swapping_the_sides_turns_the_sign_only(values, rng):
    reference = [rng.random() for _ in values]
    one, other = paired_difference(values, reference), paired_difference(reference, values)
    assert one.mean == -other.mean
    assert one.p == other.p
    # p < 0.05 exactly where the interval leaves 0 out
    if one.interval is not None and abs(one.p - 0.05) > 1e-9:
        assert (one.p < 0.05) == (one.interval.low > 0 or one.interval.high < 0)


def test_differences_without_spread_prove_nothing():
    equal = paired_difference([0.5, 0.75], [0.5, 0.75])
    assert (equal.mean, equal.p, equal.interval) == (0, 1.0, None)
    shifted = paired_difference([0.3, 0.4], [0.1, 0.2])  # equal but for rounding
    assert shifted.mean == pytest.approx(0.2)
    assert (shifted.p, shifted.interval) == (None, None)
    # 352/359, 349/359, 355/359 and 352/359 as float32: equal differences, a spread of 1e-8
    images = [0.9805014133453369, 0.9721448421478271], [0.9888579249382019, 0.9805014133453369]
    rounded = paired_difference(*images)
    assert rounded.mean == pytest.approx(-3 / 359, abs=1e-6)
    assert (rounded.p, rounded.interval) == (None, None)
    single = paired_difference([0.5], [0.25])
    assert (single.mean, single.sd, single.p, single.interval) == (0.25, None, None, None)
    assert paired_difference([], []) is None
    with pytest.raises(ValueError, match="zip"):
        paired_difference([1.0], [1.0, 2.0])


def holm_by_definition(values):
    """A hypothesis falls at level a if all with p not larger pass their own thresholds."""
    tested = sorted(p for p in values if p is not None)

    def corrected(p):
        below = range(1, sum(q <= p for q in tested) + 1)
        return min(1.0, max(tested[k - 1] * (len(tested) - k + 1) for k in below))

    return [None if p is None else corrected(p) for p in values]


@given(P_VALUES)
def test_holm_is_its_definition(values):
    assert holm(values) == holm_by_definition(values)


@given(P_VALUES)
def test_holm_never_lowers_p_and_keeps_the_order(values):
    pairs = [(p, q) for p, q in zip(values, holm(values), strict=True) if p is not None]
    assert all(p <= q <= 1 for p, q in pairs)
    assert all(a[1] <= b[1] for a, b in itertools.permutations(pairs, 2) if a[0] < b[0])


# probability 0.975 and 0.995, as printed in any textbook
TABLE = {
    1: (12.7062, 63.6567),
    2: (4.3027, 9.9248),
    3: (3.1824, 5.8409),
    4: (2.7764, 4.6041),
    5: (2.5706, 4.0321),
    9: (2.2622, 3.2498),
    14: (2.1448, 2.9768),
    29: (2.0452, 2.7564),
    120: (1.9799, 2.6174),
}


@pytest.mark.parametrize("df", TABLE)
def test_quantiles_are_those_of_the_printed_tables(df):
    for probability, printed in zip((0.975, 0.995), TABLE[df], strict=True):
        assert t_quantile(probability, df) == pytest.approx(printed, abs=5e-5)
        assert t_quantile(1 - probability, df) == pytest.approx(-printed, abs=5e-5)
        assert two_sided_p(-t_quantile(probability, df), df) == pytest.approx(2 * (1 - probability))
    assert t_quantile(0.5, df) == pytest.approx(0, abs=1e-12)


def test_far_tails_keep_their_digits():
    # 1 - 2 atan(t) / pi = 2 atan(1 / t) / pi, which does not cancel
    for t in (1e3, 1e6, 1e9):
        assert two_sided_p(t, 1) == pytest.approx(2 * math.atan(1 / t) / math.pi, rel=1e-12)
    # from 40 digits of the incomplete beta function
    assert two_sided_p(9.033491566220071, 200) == pytest.approx(1.425109819645227e-16, rel=1e-12)
    assert two_sided_p(0.0, 4) == two_sided_p(-0.0, 4) == 1.0
