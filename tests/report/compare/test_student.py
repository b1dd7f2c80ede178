"""Student's t against printed tables, closed forms and plain quadrature."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qat.report.compare.statistics import incomplete_beta, t_quantile, two_sided_p

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


def density(x, df):
    log = math.lgamma((df + 1) / 2) - math.lgamma(df / 2) - math.log(df * math.pi) / 2
    return math.exp(log) * (1 + x * x / df) ** (-(df + 1) / 2)


def p_by_quadrature(t, df, panels=2000):
    """1 - 2 times the integral of the density from 0 to t, by Simpson's rule."""
    h = t / (2 * panels)
    values = [density(i * h, df) for i in range(2 * panels + 1)]
    weights = [1, *([4, 2] * panels)[:-1], 1]
    return 1 - 2 * h / 3 * math.fsum(w * v for w, v in zip(weights, values, strict=True))


@pytest.mark.parametrize("df", TABLE)
def test_quantiles_are_those_of_the_printed_tables(df):
    for probability, printed in zip((0.975, 0.995), TABLE[df], strict=True):
        assert t_quantile(probability, df) == pytest.approx(printed, abs=5e-5)
        assert t_quantile(1 - probability, df) == pytest.approx(-printed, abs=5e-5)
    assert t_quantile(0.5, df) == pytest.approx(0, abs=1e-12)


@given(st.floats(0, 1e6))
def test_p_has_closed_forms_for_one_and_two_degrees(t):
    assert two_sided_p(t, 1) == pytest.approx(1 - 2 / math.pi * math.atan(t), abs=1e-13)
    assert two_sided_p(t, 2) == pytest.approx(1 - t / math.sqrt(2 + t * t), abs=1e-13)


@pytest.mark.parametrize("df", [1, 2, 3, 4, 7, 20, 101])
@pytest.mark.parametrize("t", [0.01, 0.3, 1.0, 2.5, 8.0])
def test_p_is_the_integral_of_the_density(t, df):
    assert two_sided_p(t, df) == pytest.approx(p_by_quadrature(t, df), abs=1e-10)


def test_far_tails_keep_their_digits():
    # 1 - 2 atan(t) / pi = 2 atan(1 / t) / pi, which does not cancel
    for t in (1e3, 1e6, 1e9):
        assert two_sided_p(t, 1) == pytest.approx(2 * math.atan(1 / t) / math.pi, rel=1e-12)


@given(st.floats(0.001, 0.999), st.integers(1, 200))
def test_the_quantile_inverts_the_tail(probability, df):
    t = t_quantile(probability, df)
    p = two_sided_p(t, df)
    assert (1 - p / 2 if t > 0 else p / 2) == pytest.approx(probability, abs=1e-12)


@given(st.floats(-1e3, 1e3), st.integers(1, 200))
def test_p_is_even_and_a_probability(t, df):
    assert two_sided_p(t, df) == two_sided_p(-t, df)
    assert 0 <= two_sided_p(t, df) <= 1


@given(st.floats(0, 1), st.integers(1, 9), st.integers(1, 9))
def test_incomplete_beta_of_integers_is_a_binomial_tail(x, a, b):
    n = a + b - 1
    tail = math.fsum(math.comb(n, j) * x**j * (1 - x) ** (n - j) for j in range(a, n + 1))
    assert incomplete_beta(x, a, b) == pytest.approx(tail, abs=1e-12)
