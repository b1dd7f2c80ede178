"""The eight steps, found again by integration, minimisation and root finding."""

import math

import pytest
from scipy import integrate, optimize, stats

from qat.functional.gaussian import gaussian_step

LARGEST = [2**bits - 1 for bits in range(1, 9)]


def slope(step, largest):
    """Half the derivative of E (z - d q)^2 in d: -sum_k k E[(z - d k); z in cell k], z >= 0."""
    total = 0.0
    for k in range(1, largest + 1):
        low, high = (k - 0.5) * step, math.inf if k == largest else (k + 0.5) * step
        mean = stats.norm.pdf(low) - stats.norm.pdf(high)
        mass = stats.norm.sf(low) - stats.norm.sf(high)
        total -= k * (mean - step * k * mass)
    return total


def error(step, largest):
    """E (z - d q)^2 by quadrature, cell by cell."""

    def cell(k):
        low = 0.0 if k == 0 else (k - 0.5) * step
        high = 12.0 if k == largest else (k + 0.5) * step
        return integrate.quad(lambda z: (z - k * step) ** 2 * stats.norm.pdf(z), low, high)[0]

    return 2 * sum(cell(k) for k in range(largest + 1))


@pytest.mark.parametrize("largest", LARGEST)
def test_step_is_the_stationary_point(largest):
    step = gaussian_step(largest)
    root = optimize.brentq(slope, 0.9 * step, 1.1 * step, args=(largest,), xtol=1e-15)
    assert step == pytest.approx(root, rel=1e-11)


@pytest.mark.parametrize("largest", LARGEST[:5])
def test_step_is_the_global_minimum(largest):
    step = gaussian_step(largest)
    found = optimize.minimize_scalar(
        error, bounds=(0.3 * step, 3 * step), args=(largest,), method="bounded"
    )
    assert found.x == pytest.approx(step, rel=1e-5)
    best = error(step, largest)
    assert all(best <= error(step * factor, largest) for factor in (0.5, 0.8, 1.25, 2.0, 3.5))


def test_known_values():
    known = {1: (1.224006, 0.19017), 3: (0.650770, 0.04686), 7: (0.353411, 0.01289)}
    for largest, (step, mean_square) in known.items():
        assert gaussian_step(largest) == pytest.approx(step, abs=6e-7)
        assert error(gaussian_step(largest), largest) == pytest.approx(mean_square, abs=6e-6)
    assert gaussian_step(15) == pytest.approx(0.193249, abs=6e-7)


@pytest.mark.parametrize("largest", [0, 2, 511])
def test_other_codes_are_refused(largest):
    with pytest.raises(KeyError):
        gaussian_step(largest)
