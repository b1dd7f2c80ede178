"""Schedules at their corners, against products and cosines written out."""

import math

import pytest

from qat.functional.schedule import constant, cosine, delayed, relaxation, stepwise


def test_constant():
    assert [constant(0.3)(t) for t in (0, 1, 10**9)] == [0.3, 0.3, 0.3]


def test_relaxation_grows_geometrically_from_the_first_step_and_then_is_one():
    theta, lam = relaxation(1.0, 1.04, 150), 1.0
    for step in range(150):
        assert theta(step) == pytest.approx(lam / (1 + lam), rel=1e-12)
        lam *= 1.04
    assert lam == pytest.approx(359, abs=0.5)
    assert theta(0) == 0.5
    assert theta(149) < 1.0
    assert theta(150) == theta(10**9) == 1.0


def test_relaxation_corners():
    assert relaxation(1.0, 2.0, 0)(0) == 1.0
    assert relaxation(3.0, 1.0, 10)(7) == pytest.approx(0.75)
    assert relaxation(1.0, 2.0, 10**9)(10**6) == 1.0  # no overflow
    values = [relaxation(0.01, 1.1, 200)(t) for t in range(250)]
    assert values == sorted(values)
    assert 0 < values[0] < 0.01


def test_delayed():
    schedule = delayed(lambda t: 10.0 + t, 3, before=-1.0)
    assert [schedule(t) for t in range(6)] == [-1, -1, -1, 10, 11, 12]
    assert delayed(constant(1.0), 2)(0) == 0.0
    assert delayed(constant(1.0), 0)(0) == 1.0


def test_cosine():
    factor = cosine(10)
    assert factor(0) == 1.0
    assert factor(5) == pytest.approx(0.5)
    assert factor(3) == pytest.approx((1 + math.cos(0.3 * math.pi)) / 2)
    assert factor(10) == factor(1000) == pytest.approx(0.0, abs=1e-15)


def test_cosine_with_warm_up_and_end():
    factor = cosine(12, warmup=4, final=0.1)
    assert [factor(t) for t in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert factor(8) == pytest.approx(0.55)
    assert factor(12) == factor(99) == pytest.approx(0.1)


def test_stepwise():
    factor = stepwise((3, 6), gamma=0.1)
    assert [factor(t) for t in range(8)] == pytest.approx([1, 1, 1, 0.1, 0.1, 0.1, 0.01, 0.01])
    warm = stepwise((3,), gamma=0.5, warmup=2)
    assert [warm(t) for t in range(4)] == pytest.approx([1 / 3, 2 / 3, 1, 0.5])
    assert stepwise((), gamma=1.0, warmup=1)(0) == 0.5
