"""What holds for every grid, known vectors, and errors on Gaussian weights."""

import itertools
import math

import pytest
import torch

from qat.functional.gaussian import gaussian_step
from qat.functional.grid import (
    GRID_DIGITS,
    fit_binary,
    fit_ternary_threshold,
    fit_uniform,
    short_scale,
)
from qat.functional.power_of_two import fit_power_of_two
from qat.functional.ternary import fit_ternary

VECTOR = torch.tensor([[0.9, -0.2, 0.4, -1.1, 0.05, 0.3]])

FITS = {
    "binary": fit_binary,
    "ternary": fit_ternary,
    "ternary_threshold": fit_ternary_threshold,
    "uniform_2": lambda rows: fit_uniform(rows, 2),
    "uniform_8": lambda rows: fit_uniform(rows, 8),
    "power_of_two_2": lambda rows: fit_power_of_two(rows, 2),
    "power_of_two_4": lambda rows: fit_power_of_two(rows, 4),
}
every_grid = pytest.mark.parametrize("fit", FITS.values(), ids=FITS.keys())


def normal_quantiles(count):
    """Standard normal sample without noise: (1, count) float32."""
    share = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    return torch.special.ndtri(share).float().unsqueeze(0)


def squared_distance(rows, values, scale):
    return (rows.double() - values.double() * scale.double()).square().sum(dim=1)


def test_known_vector():
    values, scale = fit_binary(VECTOR)
    assert values.tolist() == [[1, -1, 1, -1, 1, 1]]
    assert scale.item() == pytest.approx(0.4916667)
    relaxed = (VECTOR + values * scale) / 2
    expected = [0.69583333, -0.34583333, 0.44583333, -0.79583333, 0.27083333, 0.39583333]
    assert relaxed[0].tolist() == pytest.approx(expected)
    values, scale = fit_ternary(VECTOR)
    assert (values.tolist(), scale.item()) == ([[1, 0, 0, -1, 0, 0]], 1.0)
    values, scale = fit_ternary_threshold(VECTOR)
    assert values.tolist() == [[1, 0, 1, -1, 0, 0]]
    assert scale.item() == pytest.approx(0.8)
    values, scale = fit_power_of_two(VECTOR, 2)
    assert (values.tolist(), scale.item()) == ([[1, 0, 0, -1, 0, 0]], 1.0)


def test_alternation_moves_codes_of_its_own_result():
    """Why the trainer projects latents, once: uniform grids are not idempotent."""
    rows = torch.tensor([[-0.49, 0.12, -0.54, -0.05, 0.03]])
    values, scale = fit_uniform(rows, 3, rounds=20)
    again, _ = fit_uniform(values * scale, 3, rounds=20)
    assert values.tolist() == [[-3, 1, -3, 0, 0]]
    assert again.tolist() == [[-2, 1, -2, 0, 0]]


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("shape", [(40, 9), (40, 150), (1, 3000)])
def test_points_with_short_steps_are_their_own_projection(bits, shape):
    generator = torch.Generator().manual_seed(bits)
    largest = 2 ** (bits - 1) - 1
    codes = torch.randint(-largest, largest + 1, shape, generator=generator).float()
    codes[:, 0] = 1  # of two magnitudes and more, from three bits on
    codes[:, 1] = -largest
    step = short_scale(torch.rand(shape[0], 1, generator=generator) + 0.01)
    values, scale = fit_uniform(codes * step, bits)
    if bits > 2:
        assert torch.equal(values * scale, codes * step)
        assert torch.equal(values, codes)
    else:  # rows of one magnitude: to the last bit of their mean
        torch.testing.assert_close(values * scale, codes * step, rtol=1e-6, atol=0)


def test_short_scale_is_near_and_short():
    scale = torch.rand(1000, generator=torch.Generator().manual_seed(0)) + 1e-6
    short = short_scale(scale)
    assert ((short - scale).abs() <= scale * 2.0**-GRID_DIGITS).all()
    assert torch.equal(short_scale(short), short)
    levels = torch.arange(1, 128).float()
    exact = short.double().unsqueeze(1) * levels.double()
    assert torch.equal((short.unsqueeze(1) * levels).double(), exact)
    assert short_scale(torch.zeros(1)).item() == 0


@pytest.mark.parametrize("largest", [1, 3, 7, 15, 31, 63, 127])
def test_gaussian_step_minimises_the_integral(largest):
    z = torch.linspace(0, 12, 240_001, dtype=torch.float64)
    density = torch.exp(-z * z / 2) * math.sqrt(2 / math.pi)

    def error(step):
        return torch.trapezoid((z - step * (z / step).round().clamp(max=largest)) ** 2 * density, z)

    step = gaussian_step(largest)
    grid = step * (1 + torch.linspace(-0.02, 0.02, 9, dtype=torch.float64))
    fit = torch.stack([error(s) for s in grid])
    # vertex of the parabola through nine errors around the constant
    x = grid / step - 1
    design = torch.stack([x**2, x, torch.ones_like(x)], dim=1)
    curve, slope, _ = torch.linalg.lstsq(design, fit.unsqueeze(1)).solution.flatten()
    assert curve > 0
    assert abs(-slope / (2 * curve)) < 5e-3


GAUSSIAN = {
    "binary": (fit_binary, 1 - 2 / math.pi, 1e-4),
    "ternary": (fit_ternary, 0.190174, 1e-4),
    "ternary_threshold": (fit_ternary_threshold, 0.1916, 1e-4),
    "uniform_2": (lambda r: fit_uniform(r, 2), 0.190174, 1e-4),
    "uniform_3": (lambda r: fit_uniform(r, 3), 0.046860, 1e-4),
    "uniform_4": (lambda r: fit_uniform(r, 4), 0.012889, 5e-5),
    "uniform_5": (lambda r: fit_uniform(r, 5), 0.003693, 3e-5),
}


@pytest.mark.parametrize(("fit", "expected", "within"), GAUSSIAN.values(), ids=GAUSSIAN.keys())
def test_relative_error_on_gaussian_weights(fit, expected, within):
    rows = normal_quantiles(40_000)
    error = squared_distance(rows, *fit(rows)) / rows.double().square().sum()
    assert error.item() == pytest.approx(expected, abs=within)


def test_more_rounds_do_not_raise_the_error():
    rows = torch.randn(3, 500, generator=torch.Generator().manual_seed(0)).pow(3)
    errors = [squared_distance(rows, *fit_uniform(rows, 4, rounds=r)) for r in range(1, 9)]
    for before, after in itertools.pairwise(errors):
        assert (after <= before * (1 + 1e-6)).all()


@every_grid
def test_rows_do_not_touch_each_other(fit):
    rows = torch.randn(5, 37, generator=torch.Generator().manual_seed(1))
    rows *= torch.tensor([[1e-3], [1.0], [0.0], [7.0], [1e4]])
    values, scale = fit(rows)
    for g in range(5):
        one_values, one_scale = fit(rows[g : g + 1])
        assert torch.equal(values[g : g + 1], one_values)
        assert torch.equal(scale[g : g + 1], one_scale)


@every_grid
def test_input_is_left_alone(fit):
    rows = torch.randn(2, 30, generator=torch.Generator().manual_seed(2))
    copy = rows.clone()
    fit(rows)
    assert torch.equal(rows, copy)


@every_grid
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("size", [5, 2000])
def test_not_finite_is_not_hidden(fit, bad, size):
    rows = torch.ones(2, size)
    rows[0, 3] = bad
    _, scale = fit(rows)
    assert not scale[0].isfinite().any()
    assert scale[1].isfinite().all()


@every_grid
def test_rows_of_zeros_have_scale_zero(fit):
    values, scale = fit(torch.zeros(2, 2000))
    assert torch.equal(scale, torch.zeros(2, 1))
    assert torch.equal(values * scale, torch.zeros(2, 2000))


@every_grid
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_are_computed_in_float32(fit, dtype):
    rows = torch.randn(2, 50, generator=torch.Generator().manual_seed(3)).to(dtype)
    values, scale = fit(rows)
    expected = fit(rows.float())
    assert values.dtype == scale.dtype == torch.float32
    assert torch.equal(values, expected[0])
    assert torch.equal(scale, expected[1])


@every_grid
def test_tiny_and_huge_weights_keep_their_codes(fit):
    rows = torch.randn(1, 60, generator=torch.Generator().manual_seed(4))
    values, scale = fit(rows)
    for power in (-80, 60):
        moved, moved_scale = fit(rows * 2.0**power)
        assert torch.equal(moved, values)
        assert torch.allclose(moved_scale, scale * 2.0**power, rtol=1e-6, atol=0)
