"""Every coarse derivative against its cases and its antiderivative, both written again by hand."""

import math
from typing import get_args

import pytest
import torch

from qat.functional.ste import DERIVATIVES, ESTIMATORS
from qat.names import Derivative

RANGE = ["identity", "relu", "clipped_relu", "log_tailed_relu", "reverse_exponential"]
# length of the range in steps, or the sharpness
PARAMETERS = {
    **{name: [1.0, 3.0, 255.0] for name in RANGE},
    "piecewise_quadratic": [0.0],
    "tanh": [0.001, 0.5, 1.0, 4.0, 10.0],
    "power": [1.0, 1.7, 3.0],
    "periodic": [math.pi / 2, 1.0],
    "dsq": [0.05, 0.2, 0.45],
    "swish_sign": [5.0, 1.0],
}
CASES = [(name, value) for name, values in PARAMETERS.items() for value in values]


def logistic(t):
    """The logistic function, its first and its second derivative, for t >= 0."""
    rest = math.exp(-t)
    first = rest / (1 + rest) ** 2
    return 1 / (1 + rest), first, -first * (1 - rest) / (1 + rest)


def bell(t):
    """1 / cosh(t)^2."""
    return 0.0 if abs(t) > 300 else math.cosh(t) ** -2


def power_slope(size, o):
    if size > 1.5:
        return 0.0
    return 0.1 ** (1 / o) / 0.1 if size <= 0.1 else size ** (1 / o - 1) / o


def swish_slope(v, b):
    _, first, second = logistic(abs(b * v))
    tail = abs(b * v) * second if second else 0.0
    return b * (4 * first + 2 * tail)


SLOPES = {
    "identity": lambda u, L: 1.0,
    "relu": lambda u, L: 1.0 if u > 0 else 0.0,
    "clipped_relu": lambda u, L: 1.0 if 0 < u <= L else 0.0,
    "log_tailed_relu": lambda u, L: 0.0 if u <= 0 else 1.0 if u <= L else 1 / (u - L + 1),
    "reverse_exponential": lambda u, L: math.exp(-u / L) if u > 0 else 0.0,
    "piecewise_quadratic": lambda v, _: 2 - 2 * abs(v) if abs(v) <= 1 else 0.0,
    "tanh": lambda v, t: max(1 / t, 1) * t * bell(t * v),
    "power": lambda v, o: power_slope(abs(v), o),
    "periodic": lambda v, om: om * math.cos(om * v) if abs(v) <= 1 else 0.0,
    "dsq": lambda v, a: (
        math.atanh(1 - a) / (1 - a) * bell(math.atanh(1 - a) * v) if abs(v) <= 1 else 0.0
    ),
    "swish_sign": swish_slope,
}


def power_mu(v, o):
    size = min(abs(v), 1.5)
    value = size / 0.1 * 0.1 ** (1 / o) if size <= 0.1 else size ** (1 / o)
    return math.copysign(value, v)


def quadratic_mu(v, _):
    v = min(max(v, -1.0), 1.0)
    return 2 * v + v * v if v < 0 else 2 * v - v * v


def log_tailed_mu(u, L):
    return max(u, 0.0) if u <= L else L + math.log(u - L + 1)


def swish_mu(v, b):
    s = 1 / (1 + math.exp(-b * v))
    return 2 * s * (1 + b * v * (1 - s)) - 1


MUS = {
    "identity": lambda u, L: u,
    "relu": lambda u, L: max(u, 0.0),
    "clipped_relu": lambda u, L: min(max(u, 0.0), L),
    "log_tailed_relu": log_tailed_mu,
    "reverse_exponential": lambda u, L: L * (1 - math.exp(-u / L)) if u > 0 else 0.0,
    "piecewise_quadratic": quadratic_mu,
    "tanh": lambda v, t: max(1 / t, 1) * math.tanh(t * v),
    "power": power_mu,
    "periodic": lambda v, om: math.sin(om * min(max(v, -1.0), 1.0)),
    "dsq": lambda v, a: math.tanh(math.atanh(1 - a) * min(max(v, -1.0), 1.0)) / (1 - a),
    "swish_sign": swish_mu,
}


def thresholds(name, value):
    if name in RANGE:
        return [0.0, value]
    return {"power": [-1.5, -0.1, 0.0, 0.1, 1.5]}.get(name, [-1.0, 0.0, 1.0])


def points(name, value, dtype):
    """Thresholds that are numbers of the dtype, points just outside, between and far away."""
    ends = thresholds(name, value)
    exact = [p for p in ends if torch.tensor(p, dtype=dtype).item() == p]
    near = [p + d for p in ends for d in (-1e-3, 1e-3, -0.3, 0.3)]
    far = [1e6, -1e6, math.inf, -math.inf, -0.0, 2.5 * value + 2, 1e-30, -1e-30]
    return torch.tensor([*exact, *near, *far], dtype=dtype)


def slope(name, position, value):
    return ESTIMATORS[name].slope(position, value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("name", "value"), CASES)
def test_slope_is_its_cases(name, value, dtype):
    p = points(name, value, dtype)
    result = slope(name, p, value)
    by_hand = torch.tensor([SLOPES[name](x, value) for x in p.tolist()], dtype=dtype)
    eps = torch.finfo(dtype).eps
    # 1 - tanh^2 loses digits where it is small: the error is relative to the peak
    torch.testing.assert_close(result, by_hand, rtol=30 * eps, atol=8 * eps * max(1.0, value))
    whole = ["identity", "relu", "clipped_relu"]
    assert name not in whole or torch.equal(result, by_hand)


@pytest.mark.parametrize(("name", "value"), CASES)
def test_slope_is_the_finite_difference_of_mu(name, value):
    width = value if name in RANGE else 1.0
    generator = torch.Generator().manual_seed(5)
    p = torch.rand(400, dtype=torch.float64, generator=generator) * (width + 4) - 2
    smooth = [x for x in p.tolist() if min(abs(x - t) for t in thresholds(name, value)) > 1e-4]
    assert len(smooth) > 300
    mu, h = MUS[name], 1e-5
    differences = [(mu(x + h, value) - mu(x - h, value)) / (2 * h) for x in smooth]
    result = slope(name, torch.tensor(smooth, dtype=torch.float64), value)
    expected = torch.tensor(differences, dtype=torch.float64)
    torch.testing.assert_close(result, expected, rtol=1e-7, atol=2e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("name", "value"), [case for case in CASES if case[0] not in RANGE])
def test_sharpness_is_a_float_or_a_tensor_of_any_width(name, value, dtype):
    v = torch.linspace(-2, 2, 41, dtype=torch.float64).to(dtype)
    plain = slope(name, v, value)
    assert plain.dtype == dtype
    for wide in (torch.float32, torch.float64):
        moving = slope(name, v, torch.tensor(value, dtype=wide))
        assert moving.dtype == dtype
        eps = max(torch.finfo(dtype).eps, torch.finfo(wide).eps)
        torch.testing.assert_close(moving, plain, rtol=16 * eps, atol=8 * eps * max(1.0, value))


def test_the_table_is_complete():
    assert list(ESTIMATORS) == list(DERIVATIVES) == list(get_args(Derivative)) == list(SLOPES)
    assert list(SLOPES) == list(MUS) == list(PARAMETERS)
    assert [name for name, member in ESTIMATORS.items() if member.frame == "range"] == RANGE
