"""The staircase against tables written from its definition, in exact rational arithmetic."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qat.functional.staircase import staircase_ste
from qat.functional.stairs import relu_stairs, signed_stairs

DERIVATIVES = ["identity", "relu", "clipped_relu"]
STEP_DERIVATIVES = ["exact", "three_valued", "two_valued"]
RELU, SIGNED = "relu", "signed"
KINDS = [(RELU, bits) for bits in range(1, 9)] + [(SIGNED, bits) for bits in range(2, 9)]


def stairs_of(kind, bits):
    return relu_stairs(bits) if kind == RELU else signed_stairs(bits)


def expected(x, alpha, kind, bits):
    """(code, region) of one x: region -1 below, 0 inside, 1 above the levels' range."""
    ratio = Fraction(x) / Fraction(alpha)
    if kind == RELU:
        top = 2**bits - 1
        region = -1 if ratio <= 0 else (1 if ratio > top else 0)
        return min(max(math.ceil(ratio), 0), top), region
    top = 2 ** (bits - 1) - 1
    half = Fraction(1, 2)
    region = -1 if ratio <= -top - half else (1 if ratio > top + half else 0)
    return min(max(math.ceil(ratio - half), -top), top), region


def slope_x(name, region):
    return {"identity": 1, "relu": int(region >= 0), "clipped_relu": int(region == 0)}[name]


def slope_alpha(name, code, region, kind, bits):
    if kind == RELU:
        low, mean, top = 0, 2 ** (bits - 1), 2**bits - 1
    else:
        top = 2 ** (bits - 1) - 1
        low, mean = -top, 0
    if region:
        return top if region > 0 else low
    return {"exact": code, "three_valued": mean, "two_valued": 0}[name]


def points(alpha, kind, bits):
    """Every threshold, its float32 neighbours, the middles, zeros, both far ends."""
    top = 2**bits if kind == RELU else 2 ** (bits - 1)
    shift = 0.0 if kind == RELU else 0.5
    thresholds = [(k + shift) * alpha for k in range(-1 if kind == RELU else -top, top + 1)]
    t = torch.tensor(thresholds, dtype=torch.float32)
    above, below = t, t
    for _ in range(1 if kind == RELU else 2):  # -1/2 - 1/2 rounds the very next number away
        above = above.nextafter(torch.full_like(t, math.inf))
        below = below.nextafter(torch.full_like(t, -math.inf))
    ends = torch.tensor([0.0, -0.0, 1e-30, -1e-30, 1e6, -1e6])
    return torch.cat([t, above, below, t + alpha / 2, ends])


def run(x, alpha, kind, bits, derivative, step_derivative, upstream):
    x = x.clone().requires_grad_()
    step = torch.tensor(alpha, requires_grad=True)
    y = staircase_ste(
        x,
        step,
        stairs=stairs_of(kind, bits),
        derivative=derivative,
        step_derivative=step_derivative,
    )
    y.backward(upstream.to(y.dtype))
    return y.detach(), x.grad, step.grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("kind", "bits"), KINDS)
def test_values_and_derivatives_at_between_and_outside_the_thresholds(kind, bits, dtype):
    alpha = 0.25  # dyadic, so that the thresholds are numbers of every dtype
    x = points(alpha, kind, bits).to(dtype)
    table = [expected(value, alpha, kind, bits) for value in x.tolist()]
    codes = torch.tensor([float(code) for code, _ in table])
    # whole numbers: their sums are exact, and any wrong slope changes at least one of them
    upstream = torch.randint(-8, 9, x.shape, generator=torch.Generator().manual_seed(bits))
    for name in DERIVATIVES:
        for step_name in STEP_DERIVATIVES:
            y, grad_x, grad_alpha = run(x, alpha, kind, bits, name, step_name, upstream)
            assert y.dtype == grad_x.dtype == dtype
            assert torch.equal(y, (codes * alpha).to(dtype))
            slopes = torch.tensor([float(slope_x(name, region)) for _, region in table])
            assert torch.equal(grad_x.float(), upstream * slopes)
            rows = [slope_alpha(step_name, c, r, kind, bits) for c, r in table]
            assert grad_alpha.dtype == torch.float32
            products = [g * s for g, s in zip(upstream.tolist(), rows, strict=True)]
            if dtype == torch.bfloat16:  # the products are rounded to 8 bits, their sum is not
                slack = sum(abs(p) for p in products) * 2**-9
                assert abs(grad_alpha.item() - sum(products)) <= slack
            else:
                assert grad_alpha.item() == sum(products)


@pytest.mark.parametrize("step_derivative", STEP_DERIVATIVES)
@pytest.mark.parametrize(("kind", "bits"), [(RELU, 1), (RELU, 4), (RELU, 8), (SIGNED, 3)])
def test_step_derivative_of_each_single_element(kind, bits, step_derivative):
    alpha = 0.5
    for value in points(alpha, kind, bits)[:: max(1, 2**bits // 16)].tolist():
        x = torch.tensor([value])
        _, _, grad = run(x, alpha, kind, bits, "relu", step_derivative, torch.ones(1))
        code, region = expected(value, alpha, kind, bits)
        assert grad.item() == slope_alpha(step_derivative, code, region, kind, bits)


def test_the_middle_value_is_the_mean_of_the_codes():
    for bits in range(1, 9):
        codes = range(1, 2**bits)
        assert sum(codes) / len(codes) == relu_stairs(bits).mean
        top = 2 ** (bits - 1) - 1
        assert sum(range(-top, top + 1)) == 0 == signed_stairs(bits).mean


@pytest.mark.parametrize(("kind", "bits"), KINDS)
def test_exact_step_derivative_is_the_finite_difference_off_the_jumps(kind, bits):
    alpha, h = 0.37, 1e-9
    x = torch.randn(2000, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) * 3
    stairs = stairs_of(kind, bits)

    def sigma(step):
        return staircase_ste(x, torch.tensor(step, dtype=torch.float64), stairs=stairs)

    fraction = (x / alpha - (0 if kind == RELU else 0.5)) % 1
    smooth = (fraction > 1e-5) & (fraction < 1 - 1e-5)
    difference = ((sigma(alpha + h) - sigma(alpha - h)) / (2 * h))[smooth]
    step = torch.tensor(alpha, dtype=torch.float64, requires_grad=True)
    y = staircase_ste(x[smooth], step, stairs=stairs, step_derivative="exact")
    weights = torch.randn(y.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    y.backward(weights)
    assert smooth.sum() > 1900
    torch.testing.assert_close(step.grad, (weights * difference).sum(), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("alpha", "used"), [(1e-6, 1e-3), (-3.0, 1e-3), (7.0, 5.0), (1e9, 5.0)])
@pytest.mark.parametrize("step_derivative", STEP_DERIVATIVES)
def test_alpha_is_clamped_and_the_clamp_passes_the_gradient(alpha, used, step_derivative):
    x = torch.tensor([-1.0, 2.6e-3, 8.0, 1000.0])
    y, _, grad = run(x, alpha, RELU, 4, "clipped_relu", step_derivative, torch.ones(4))
    table = [expected(v, torch.tensor(used).item(), RELU, 4) for v in x.tolist()]
    levels = torch.tensor([float(code) for code, _ in table])
    assert torch.equal(y, levels * torch.tensor(used))
    assert grad.item() == sum(slope_alpha(step_derivative, c, r, RELU, 4) for c, r in table)


# a subnormal x divided by alpha may be zero already
FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False).filter(
    lambda x: x == 0 or abs(x) > 1e-30
)


@settings(deadline=None)
@given(
    st.lists(FINITE, min_size=1, max_size=30),
    st.floats(0.0010000000474974513, 5, width=32),
    st.sampled_from(KINDS),
)
def test_output_is_on_the_grid_and_monotone(values, alpha, choice):
    stairs = stairs_of(*choice)
    x = torch.tensor(sorted(values))
    y = staircase_ste(x, torch.tensor(alpha), stairs=stairs)
    levels = torch.arange(stairs.low, stairs.high + 1) * torch.tensor(alpha)
    assert torch.isin(y, levels).all()
    assert (y.diff() >= 0).all()
    assert (y[x == 0] == 0).all()
    if choice[0] == RELU:
        assert (y[x <= 0] == 0).all()
        assert (y[x > 0] >= levels[1]).all()


def test_extremes():
    x = torch.tensor([math.inf, -math.inf, math.nan])
    y = staircase_ste(x, torch.tensor(0.5), stairs=relu_stairs(2))
    assert y[:2].tolist() == [1.5, 0.0]
    assert y[2].isnan()  # a NaN must reach the loss, where the run is stopped
    empty, grad, grad_alpha = run(
        torch.zeros(0, 3), 0.5, RELU, 2, "relu", "exact", torch.zeros(0, 3)
    )
    assert empty.shape == grad.shape == (0, 3)
    assert grad_alpha.item() == 0
