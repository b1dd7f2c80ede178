"""What the method sheets say about the coarse derivatives, and the class that the theory needs."""

import math
from itertools import pairwise

import pytest
import torch

from qat.functional.stairs import relu_stairs
from qat.functional.ste import DERIVATIVES, ESTIMATORS, coarse_slope

SMALL = torch.tensor([-0.1, -0.02, 0.0, 0.05, 0.1], dtype=torch.float64)
MONOTONE = {"relu", "clipped_relu", "log_tailed_relu", "reverse_exponential"}


def slope(name, position, value):
    return ESTIMATORS[name].slope(position, value)


def integral(name, value, end=1.0, count=200_000):
    """Integral of the slope over (-end, end) by the midpoint rule."""
    v = (torch.arange(count, dtype=torch.float64) + 0.5) / count * 2 * end - end
    return slope(name, v, value).mean().item() * 2 * end


def test_bi_real_and_dsq_and_half_a_period_climb_by_the_two_of_a_cell():
    assert integral("piecewise_quadratic", 0.0) == pytest.approx(2, abs=1e-8)
    assert integral("periodic", math.pi / 2) == pytest.approx(2, abs=1e-8)
    for a in (0.02, 0.2, 0.49):
        assert integral("dsq", a) == pytest.approx(2, abs=1e-7)
        k, s = math.log(2 / a - 1) / 2, 1 / (1 - a)
        assert s * math.tanh(k) == pytest.approx(1, abs=1e-14)
        assert slope("dsq", torch.zeros(1), a).item() == pytest.approx(s * k, rel=1e-6)


def test_reste_starts_as_the_clipped_identity_and_has_a_secant_below_m():
    v = torch.linspace(-2, 2, 4001, dtype=torch.float64)
    assert torch.equal(slope("power", v, 1.0), (v.abs() <= 1.5).double())
    for o in (1.0, 2.0, 3.0):
        secant = slope("power", SMALL, o)
        # the line from 0 to the point (m, m^(1/o)) of the power function
        assert secant.tolist() == pytest.approx([0.1 ** (1 / o) / 0.1] * 5, rel=1e-6)
        expected = 2 * 1.5 ** (1 / o)
        assert integral("power", o, end=2.0) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("t", [1e-3, 0.1, 1.0, 2.5, 10.0])
def test_ede_is_one_at_first_and_peaked_late(t):
    peak = slope("tanh", torch.zeros(1), t).item()
    assert peak == pytest.approx(max(1.0, t))
    assert integral("tanh", t) == pytest.approx(2 * max(1 / t, 1) * math.tanh(t), rel=1e-6)


@pytest.mark.parametrize("b", [1.0, 5.0])
def test_swish_sign_turns_negative_where_mu_has_overshot(b):
    v = torch.linspace(-3, 3, 6001, dtype=torch.float64)
    result = slope("swish_sign", v / b, b)
    assert (result[v.abs() < 2.399] > 0).all()
    assert (result[v.abs() > 2.4] < 0).all()
    # the integral of the slope up to there: mu climbs to 1.2, above the level 1
    assert integral("swish_sign", b, end=2.4 / b) / 2 == pytest.approx(1.1998, abs=1e-3)


def test_schedules():
    ends = {"tanh": (0.001, 10.0), "power": (1.0, 3.0)}
    constants = {"periodic": math.pi / 2, "dsq": 0.2, "swish_sign": 5.0}
    for name, member in ESTIMATORS.items():
        values = [member.sharpness(number / 100) for number in range(101)]
        assert all(type(value) is float for value in values)
        assert member.is_scheduled == (name in ends)
        if name not in ends:
            assert set(values) == {constants.get(name, 0.0)}
            continue
        assert (values[0], values[-1]) == pytest.approx(ends[name], rel=1e-12)
        assert all(later > earlier for earlier, later in pairwise(values))
    tanh, power = ESTIMATORS["tanh"].sharpness, ESTIMATORS["power"].sharpness
    assert tanh(0.25) == pytest.approx(0.01)
    assert tanh(0.5) == pytest.approx(0.1)
    assert power(0.5) == pytest.approx(3 - math.sqrt(2))
    assert power(2 / 3) == pytest.approx(2)


def is_monotone(name, bits, progress):
    """Class of arXiv:2011.11256: 0 up to 0, then bounded, not negative and never rising."""
    z = torch.linspace(-2.0, 2.0**bits + 20, 5000, dtype=torch.float64)
    sharpness = ESTIMATORS[name].sharpness(progress)
    slopes = coarse_slope(z, name, stairs=relu_stairs(bits), sharpness=sharpness)
    positive = slopes[z > 0]
    return bool(
        (slopes[z <= 0] == 0).all()
        and (positive >= 0).all()
        and (positive <= 1).all()
        and (positive.diff() <= 0).all()
        and positive[0] > 0.9
    )


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("name", DERIVATIVES)
def test_the_monotone_class_has_four_members(name, bits):
    for progress in (0.0, 0.5, 1.0):
        assert is_monotone(name, bits, progress) == (name in MONOTONE)
