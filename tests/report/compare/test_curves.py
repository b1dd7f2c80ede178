"""Bands over runs, and the front that nothing beats."""

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qat.report.compare.bands import band, band_of, series
from qat.report.compare.pareto import Point, pareto_front

ROWS = [
    {"step": "16", "epoch": "0", "val/acc": "0.5"},
    {"step": "16", "epoch": "0", "val/acc": ""},
    {"step": "33", "epoch": "1", "val/acc": "0.75"},
    {"step": "40", "epoch": "", "quant/flip_rate": "0.1"},
    {"step": "33", "epoch": "1", "val/acc": "0.8"},
    {"step": "?", "epoch": "2", "val/acc": "nan"},
]


def test_epochs_count_from_one_and_the_last_value_stays():
    assert series(ROWS, "val/acc") == {1: 0.5, 2: 0.8}
    assert series(ROWS, "quant/flip_rate", axis="step") == {40: 0.1}
    assert series(ROWS, "nothing") == {}


def test_a_band_is_mean_and_deviation_where_all_curves_are():
    found = band([{1: 0.5, 2: 0.75, 3: 1.0}, {}, {1: 0.25, 3: 0.5}])
    assert (found.places, found.means, found.n) == ((1, 3), (0.375, 0.75), 2)
    assert found.spreads == pytest.approx(
        (statistics.stdev([0.5, 0.25]), statistics.stdev([1.0, 0.5]))
    )
    assert band([]) is None
    assert band_of([ROWS], "nothing") is None
    assert band_of([ROWS], "val/acc").spreads == (0, 0)


POINTS = st.lists(st.builds(Point, st.just("a"), st.integers(1, 5), st.integers(0, 5)), max_size=12)


@given(POINTS)
def test_the_front_is_what_no_point_beats(points):
    def beats(a, b):
        return a.cost <= b.cost and a.accuracy >= b.accuracy and a[1:3] != b[1:3]

    brute = [p for p in points if not any(beats(q, p) for q in points)]
    found = pareto_front(points)
    assert sorted(found) == sorted(brute)
    assert [p.cost for p in found] == sorted(p.cost for p in found)
