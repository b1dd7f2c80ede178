"""Exact ternary and power-of-two grids: brute force, the full sort, the paper's thresholds."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qat.functional import ternary
from qat.functional.grid import fit_binary
from qat.functional.power_of_two import fit_power_of_two, power_of_two_levels
from qat.functional.ternary import fit_ternary

TIES = st.sampled_from([0.0, -0.0, 0.25, -0.25, 0.5, -0.5, 1.0, -1.0])
SPREAD = st.floats(-8, 8, width=32, allow_subnormal=False).filter(lambda x: abs(x) > 1e-6)
SHORT = st.lists(TIES | SPREAD, min_size=1, max_size=7)


def normal_quantiles(count):
    """Standard normal sample without noise: (1, count) float32."""
    share = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    return torch.special.ndtri(share).float().unsqueeze(0)


def squared_distance(rows, values, scale):
    return (rows.double() - values.double() * scale.double()).square().sum(dim=1)


def all_points(levels, size):
    return torch.tensor(list(itertools.product(levels, repeat=size)), dtype=torch.float64)


def least_distance(w, levels):
    """Smallest squared distance of w to s * levels^N over all s >= 0."""
    points = all_points(levels, len(w))
    match = (points @ w).clamp_min(0)
    return float(w @ w - (match.square() / points.square().sum(dim=1).clamp_min(1e-300)).max())


def least_distance_power_of_two(w):
    points = all_points((-1, 0, 1), len(w))
    scales = [2.0**s for s in range(-40, 8)]
    return min(float((w - s * points).square().sum(dim=1).min()) for s in scales)


@given(SHORT)
def test_no_binary_point_is_nearer(weights):
    rows = torch.tensor([weights])
    best = least_distance(rows[0].double(), (-1, 1))
    found = squared_distance(rows, *fit_binary(rows)).item()
    assert found == pytest.approx(best, abs=1e-5 * (1 + best))


@given(SHORT)
def test_no_ternary_point_is_nearer(weights):
    rows = torch.tensor([weights])
    best = least_distance(rows[0].double(), (-1, 0, 1))
    found = squared_distance(rows, *fit_ternary(rows)).item()
    assert found == pytest.approx(best, abs=1e-5 * (1 + best))


@given(SHORT)
def test_no_two_bit_power_of_two_point_is_nearer(weights):
    rows = torch.tensor([weights])
    best = least_distance_power_of_two(rows[0].double())
    found = squared_distance(rows, *fit_power_of_two(rows, 2)).item()
    assert found == pytest.approx(best, abs=1e-5 * (1 + best))


@given(SHORT, st.sampled_from([3, 4, 5, 6]), st.sampled_from([0.4, 0.75, 1.0]))
def test_power_of_two_follows_the_thresholds(weights, bits, mu):
    rows = torch.tensor([weights])
    values, scale = fit_power_of_two(rows, bits, mu=mu)
    n = 2 ** (bits - 2)
    top = torch.tensor(mu) * rows.abs().max()
    expected = torch.zeros_like(rows)
    for t in range(n):
        low = 2.0**-t if t < n - 1 else 2.0 ** (2 - n) / 3
        expected = torch.where((expected == 0) & (rows.abs() / top >= low), 2.0**-t, expected)
    assert torch.equal(values, expected * rows.sign())
    by_scale = [squared_distance(rows, values, torch.tensor(2.0**s)).item() for s in range(-30, 8)]
    found = squared_distance(rows, values, scale).item()
    assert found == pytest.approx(min(by_scale), abs=1e-5 * (1 + found))


@pytest.mark.parametrize(
    ("bits", "sigma", "cut", "expected"),
    [(3, 1.0, 1.5, 0.092), (3, 1.6, 0.95, 0.110), (4, 1.6, 1.9, 0.0403), (5, 1.6, 3.75, 0.0383)],
)
def test_power_of_two_error_on_gaussian_weights(bits, sigma, cut, expected):
    """`cut` is the top threshold in sigmas; the levels are absolute, so sigma matters."""
    rows = normal_quantiles(100_000)
    mu = cut / rows.max().item()
    error = squared_distance(rows * sigma, *fit_power_of_two(rows * sigma, bits, mu=mu))
    relative = error / (rows * sigma).square().sum()
    assert relative.item() == pytest.approx(expected, abs=1e-3)


def long_rows():
    make = torch.Generator().manual_seed(5)
    normal = torch.randn(2, 3000, generator=make)
    clusters = normal.sign() * (1 + 0.01 * torch.randn(2, 3000, generator=make))
    mixed = torch.where(torch.rand(2, 3000, generator=make) < 0.5, clusters, 0.3 * clusters)
    return {
        "normal": normal,
        "heavy_tail": normal.pow(7),
        "one_outlier": torch.cat([normal[:, 1:] * 1e-6, torch.ones(2, 1)], dim=1),
        "two_clusters": mixed,
        "ties": normal.mul(4).round().div(4),
        "constant": torch.full((2, 3000), 0.3),
        "mostly_zero": normal * (torch.rand(2, 3000, generator=make) < 0.01),
        "denormal": normal * 1e-40,
        "unlike_rows": normal * torch.tensor([[1e-5], [1e5]]),
    }


@pytest.mark.parametrize("rows", long_rows().values(), ids=long_rows().keys())
def test_long_ternary_rows_find_the_optimum_of_a_full_sort(rows, monkeypatch):
    falling = rows.double().abs().sort(dim=1, descending=True).values
    best = (falling.cumsum(1).square() / torch.arange(1, 3001)).amax(dim=1)
    values, scale = fit_ternary(rows)
    kept = values.count_nonzero(dim=1)
    reached = (values * rows.double()).sum(dim=1).square() / kept
    torch.testing.assert_close(reached, best, rtol=1e-12, atol=0)
    monkeypatch.setattr(ternary, "_SORT_BELOW", 10**9)
    sorted_values, sorted_scale = fit_ternary(rows)
    assert torch.equal(values, sorted_values)
    torch.testing.assert_close(scale, sorted_scale, rtol=1e-6, atol=0)


def test_long_ternary_rows_are_not_sorted_whole():
    window, *_ = ternary._window(normal_quantiles(500_000))
    assert window.shape[1] < 25_000


@pytest.mark.parametrize("bits", [2, 3, 6])
def test_power_of_two_levels(bits):
    levels = power_of_two_levels(bits)
    assert len(levels) == 2 ** (bits - 1) + 1
    assert list(levels) == sorted(levels)
    assert levels[-1] == 1
    assert all(-x in levels and (x == 0 or math.frexp(x)[0] in (0.5, -0.5)) for x in levels)
