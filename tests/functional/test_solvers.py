"""Fast solvers against plain ones: the same bits, on weights of every kind and size."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qat.functional import excess, power_of_two, rows, sorting, ternary
from qat.functional.grid import fit_binary, fit_ternary_threshold, fit_uniform
from qat.functional.power_of_two import fit_power_of_two
from qat.functional.ternary import fit_ternary
from support import plain_grids

KINDS = {
    "normal": lambda w: 0.05 * w,
    "heavy_tail": lambda w: w.pow(7),
    "short_tail": lambda w: w.clamp(-1, 1),
    "laplace": lambda w: w.sign() * w.abs().exp(),
    "clusters": lambda w: w.sign() * (1 + 0.01 * w),
    "one_outlier": lambda w: torch.cat([1e-3 * w[:, 1:], torch.ones(len(w), 1)], dim=1),
    "ties": lambda w: w.mul(4).round().div(4),
    "constant": lambda w: torch.full_like(w, 0.3),
    "zero": torch.zeros_like,
    "sparse": lambda w: w * (w.abs() > 2.5),
    "tiny": lambda w: 1e-36 * w,
    "denormal": lambda w: 1e-40 * w,
    "huge": lambda w: 1e30 * w,
    "unlike_rows": lambda w: w * torch.logspace(-6, 6, len(w)).unsqueeze(1),
    "half": lambda w: w.half(),
    "bfloat16": lambda w: w.bfloat16(),
}
SHAPES = [(1, 5), (4, 70), (40, 5000), (1, 40_000), (1, 150_000), (2, 140_000)]
every_kind = pytest.mark.parametrize("kind", KINDS)


def weights(kind, shape, seed=0):
    return KINDS[kind](torch.randn(shape, generator=torch.Generator().manual_seed(seed)))


def same(found, wanted):
    for a, b in zip(found, wanted, strict=True):
        assert torch.equal(a, b)


@every_kind
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_ternary_is_that_of_a_full_sort(kind, shape):
    w = weights(kind, shape)
    same(fit_ternary(w), plain_grids.ternary(w))


@every_kind
def test_ternary_by_the_bracket_is_that_of_a_full_sort(kind, monkeypatch):
    """Rows too short for it, where the guess from a sample is bad and brackets stay wide."""
    monkeypatch.setattr(ternary, "_SORT_BELOW", 0)
    for shape in ((3, 9), (5, 700), (2, 3000)):
        w = weights(kind, shape, seed=1)
        same(fit_ternary(w), plain_grids.ternary(w))


NUMBERS = st.floats(-4, 4, width=32) | st.sampled_from([0.0, -0.0, 0.5, -0.5, 1.0, 3.0, 1e-40])


@settings(max_examples=60)
@given(
    st.lists(NUMBERS, min_size=1, max_size=40), st.sampled_from([1, 3, 20]), st.integers(-60, 60)
)
def test_ternary_of_any_numbers(numbers, repeats, power):
    row = torch.tensor([numbers]).repeat(1, repeats) * 2.0**power
    wanted = plain_grids.ternary(row)
    same(fit_ternary(row), wanted)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ternary, "_SORT_BELOW", 0)
        same(fit_ternary(row), wanted)


@every_kind
def test_without_numpy_the_values_are_the_same(kind, monkeypatch):
    shapes = [(4, 70), (1, 150_000)]
    before = [fit_ternary(weights(kind, shape)) for shape in shapes]
    monkeypatch.setattr(sorting, "_array", lambda size: None)
    for shape, wanted in zip(shapes, before, strict=True):
        same(fit_ternary(weights(kind, shape)), wanted)


@every_kind
@pytest.mark.parametrize("shape", [(4, 70), (9, 5000), (40, 5000), (1, 150_000)], ids=str)
def test_two_bit_powers_are_the_nearest(kind, shape, monkeypatch):
    w = weights(kind, shape).float()
    if kind not in ("tiny", "denormal", "unlike_rows"):  # the plain one tries 40 powers
        same(fit_power_of_two(w, 2), plain_grids.two_bit_power(w))
    found = fit_power_of_two(w, 2)
    monkeypatch.setattr(power_of_two, "_COUNT_BELOW", 10**9)
    same(found, fit_power_of_two(w, 2))


@every_kind
@pytest.mark.parametrize("shape", SHAPES[:4], ids=str)
def test_rows_within_a_piece_keep_every_bit(kind, shape):
    w = weights(kind, shape)
    same(fit_binary(w), plain_grids.binary(w))
    for bits in (2, 4, 8):
        values, scale = fit_uniform(w, bits)
        # all quarters below the peak are points of the grid, which stay; else the plain rounds
        kept = (values * scale == w).all(dim=1) & (kind == "ties")
        same((values[~kept], scale[~kept]), [v[~kept] for v in plain_grids.uniform(w, bits)])
        assert not kept.any() or bits == 8


@pytest.mark.parametrize("kind", ["normal", "heavy_tail", "ties", "constant", "huge"])
def test_sums_over_longer_rows_move_the_last_digits_only(kind):
    """They are sums of pieces; BLAS has fewer partial sums for the uniform grid's products."""
    w = weights(kind, (2, rows.PIECE + 5000))
    values, scale = fit_binary(w)
    exact = w.double().abs().mean(dim=1, keepdim=True)
    torch.testing.assert_close(scale.double(), exact, rtol=1e-6, atol=0)
    assert torch.equal(values, plain_grids.binary(w)[0])
    for bits in (2, 4, 8)[: 2 if kind == "ties" else 3]:  # which are points of the grid of 8 bits
        values, scale = fit_uniform(w, bits)
        wanted_values, wanted = plain_grids.uniform(w, bits)
        # equal numbers are the worst: every addition rounds to the same side
        torch.testing.assert_close(scale, wanted, rtol=1e-4 if kind == "constant" else 1e-5, atol=0)
        # only weights that lie between two levels but for rounding
        assert (values != wanted_values).float().mean() < 1e-4
        assert (values - wanted_values).abs().max() <= 1


FITS = {
    "binary": fit_binary,
    "ternary": fit_ternary,
    "ternary_threshold": fit_ternary_threshold,
    "uniform": lambda w, **to: fit_uniform(w, 4, **to),
    "power_of_two_2": lambda w, **to: fit_power_of_two(w, 2, **to),
    "power_of_two_4": lambda w, **to: fit_power_of_two(w, 4, **to),
}


@pytest.mark.parametrize("fit", FITS.values(), ids=FITS)
@pytest.mark.parametrize("shape", [(3, 1), (4, 70), (40, 5000), (2, 140_000)], ids=str)
def test_out_and_scaled(fit, shape):
    w = weights("normal", shape)
    values, scale = fit(w)
    assert not torch.signbit(values[values == 0]).any()
    out = torch.full_like(w, 7)
    found, same_scale = fit(w, out=out)
    assert found.data_ptr() == out.data_ptr()
    same((out, same_scale), (values, scale))
    same(fit(w, out=out, scaled=True), (values * scale, scale))


@pytest.mark.parametrize("fit", FITS.values(), ids=FITS)
def test_a_row_is_the_same_alone_and_among_others(fit):
    w = weights("unlike_rows", (60, 5000))
    values, scale = fit(w)
    for g in (0, 27, 59):
        same(fit(w[g : g + 1]), (values[g : g + 1], scale[g : g + 1]))


@every_kind
def test_the_bracket_holds_the_best_threshold(kind):
    w = weights(kind, (3, 4000)).float()
    mean, peak = rows.means_and_peaks(w)
    low, high = excess.bracket(w, mean, peak)
    best = plain_grids.ternary(w)[1] / 2
    assert (low <= best * (1 + 1e-6)).all()
    assert (high >= best * (1 - 1e-6)).all()


@every_kind
def test_excess_is_within_what_it_says(kind):
    w = weights(kind, (2, 150_000)).float()
    points = w.abs().amax(dim=1, keepdim=True) * torch.tensor([0.0, 0.1, 0.5, 1.0])
    found, error = excess.excess(w, points)
    size = w.double().abs()
    for j in range(4):
        exact = (size - points[:, j : j + 1].double()).clamp_min(0).sum(dim=1)
        assert ((found[:, j] - exact).abs() <= error[:, j]).all()
