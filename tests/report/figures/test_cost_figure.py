"""Costs: every network has a sign of its own, and none hides another."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qat.report.compare.pareto import Point
from qat.report.figures.cost import draw_cost, spread_costs


def signs(figure, count):
    lines = [line for line in figure.axes[0].lines if line.get_linestyle() == "None"]
    assert len(lines) == count
    return [(line.get_color(), line.get_marker()) for line in lines]


@pytest.mark.parametrize("count", [13, 56])
def test_no_two_networks_share_a_sign(count):
    points = [Point(f"n{i}", 10.0 + i, 0.5) for i in range(count)]
    found = signs(draw_cost(points, xlabel="bytes"), count)
    assert len(set(found)) == count


def test_equal_costs_are_drawn_apart_and_the_front_is_true():
    points = [Point("a", 100.0, 0.9), Point("b", 100.0, 0.9), Point("c", 1000.0, 0.95)]
    axes = draw_cost(points, xlabel="bytes").axes[0]
    front, *drawn = axes.lines
    assert list(front.get_xdata()) == [100.0, 100.0, 1000.0]
    places = [line.get_xdata()[0] for line in drawn]
    assert 95 < places[0] < 100 < places[1] < 105
    assert places[2] == 1000.0


def test_a_bar_stays_with_its_point():
    points = [Point("a", 100.0, 0.9), Point("b", 100.0, 0.8)]
    intervals = {"a": (0.85, 0.95), "b": (0.7, 0.9)}
    axes = draw_cost(points, xlabel="bytes", intervals=intervals).axes[0]
    _, bar_a, a, bar_b, b = axes.lines
    assert set(bar_a.get_xdata()) == set(a.get_xdata())
    assert set(bar_b.get_xdata()) == set(b.get_xdata())
    assert a.get_xdata()[0] < b.get_xdata()[0]


@given(st.lists(st.sampled_from([1.0, 7.0, 7.01, 50.0, 1e4]), min_size=1, max_size=30))
def test_places_differ_and_are_near(costs):
    places = spread_costs(costs)
    assert len(set(places)) == len(places)
    span = max(math.log(max(costs) / min(costs)), 0.1)
    for (cost, place), (other, its) in zip(
        zip(costs, places, strict=True), [*zip(costs, places, strict=True)][1:], strict=False
    ):
        assert abs(math.log(place / cost)) <= 0.06 * span
        if cost == other:
            assert place < its  # in their order


def test_a_cost_without_a_logarithm_keeps_its_place():
    assert spread_costs([0.0, -1.0, 0.0]) == [0.0, -1.0, 0.0]
    assert spread_costs([]) == []
