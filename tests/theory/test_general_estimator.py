"""Any estimator in the two-linear-layer model: quadrature against other means, and the origin."""

import math

import pytest
import torch

from qat.functional.ste import DERIVATIVES, ESTIMATORS
from qat.theory import two_layer as model
from qat.theory.general_estimator import coarse_general, family_slope, moments
from support import monte_carlo as sampled

CLOSED = {
    "identity": model.coarse_identity,
    "relu": model.coarse_relu,
    "clipped_relu": model.coarse_clipped_relu,
}
ONE_SIDED = ("relu", "clipped_relu", "log_tailed_relu", "reverse_exponential")


def vector(*values):
    return torch.tensor(values, dtype=torch.float64)


def lopsided(x):
    """A slope that no symmetry helps: negative parts, different sides, jumps at -0.3 and 0.8."""
    return torch.where(x < -0.3, -0.5 + 0 * x, torch.cos(x)) + 2.0 * (x > 0.8)


def test_a_lopsided_slope_against_a_million_samples():
    v, w, v_star, w_star = (
        vector(1, -2, 0.4),
        vector(0.9, -0.6),
        vector(0.7, 1, -1),
        vector(0.6, 0.8),
    )
    closed = coarse_general(v, w, v_star, w_star, slope=lopsided, kinks=(-0.3, 0.8))
    found = sampled.sample_coarse(v, w, v_star, w_star, slope=lopsided, samples=1_000_000, seed=3)
    assert ((found.mean - closed).abs() <= 5 * found.error).all()
    assert (closed.abs() > 20 * found.error).all()  # a wrong term would show


@pytest.mark.parametrize("theta", [0.4, pytest.param(2.8, marks=pytest.mark.slow)])
def test_moments_against_the_plane(theta):
    """E[z psi(z.w) 1{z.w* > 0}] in polar coordinates: the radius and the angle one by one."""
    size = 1.7
    found = moments(vector(size)[0], vector(theta)[0], slope=lopsided, kinks=(-0.3, 0.8))
    r = (torch.arange(4000, dtype=torch.float64) + 0.5) * (10 / 4000)
    a = theta - math.pi / 2 + (torch.arange(4000, dtype=torch.float64) + 0.5) * (math.pi / 4000)
    weight = r * torch.exp(-r.square() / 2) / (2 * math.pi) * (10 / 4000) * (math.pi / 4000)
    psi = lopsided(size * r[:, None] * torch.cos(a)) * (weight * r)[:, None]
    assert found.b1.item() == pytest.approx((psi * torch.cos(a)).sum().item(), abs=1e-4)
    assert found.b2.item() == pytest.approx((psi * torch.sin(a)).sum().item(), abs=1e-4)


def test_the_kinks_matter():
    """Between two panels' ends a jump costs digits: they must be named."""
    one, theta = vector(1.0)[0], vector(1.2)[0]
    named = moments(one, theta, slope=lopsided, kinks=(-0.3, 0.8)).b1
    finer = moments(one, theta, slope=lopsided, kinks=(-0.3, 0.8, 0.1, 0.5, 2.0, -1.0)).b1
    guessed = moments(one, theta, slope=lopsided).b1
    assert abs(named - finer) < 1e-13
    assert abs(named - guessed) > 1e-6


@pytest.mark.parametrize("name", ONE_SIDED)
def test_one_sided_slopes_need_h_only(name):
    """Where mu' = 0 for x < 0 the general form is (h / 2) kappa w_hat - (v^T v*) b."""
    generator = torch.Generator().manual_seed(0)
    v, v_star, w, w_star = (
        torch.randn(200, k, generator=generator, dtype=torch.float64) for k in (3, 3, 4, 4)
    )
    w_star = model.unit(w_star)
    slope = family_slope(name)
    found = moments(w.norm(dim=-1), model.angle(w, w_star), slope=slope)
    torch.testing.assert_close(found.kappa, found.kappa_positive)
    other = (v * v_star).sum(-1)
    along = model.h_value(v, v_star) * found.kappa / 2 - other * found.b1
    expected = along[:, None] * model.unit(w)
    expected = expected - (other * found.b2)[:, None] * model.tangent(w, w_star)
    general = coarse_general(v, w, v_star, w_star, slope=slope)
    torch.testing.assert_close(general, expected, rtol=1e-10, atol=1e-12)


def test_relu_is_the_papers_form_in_the_half_angle():
    generator = torch.Generator().manual_seed(1)
    v, v_star, w, w_star = (
        torch.randn(1000, k, generator=generator, dtype=torch.float64) for k in (4, 4, 5, 5)
    )
    w_star = model.unit(w_star)
    half = torch.cos(model.angle(w, w_star) / 2)[:, None]
    middle = model.unit(model.unit(w) + w_star)
    other = (v * v_star).sum(-1, keepdim=True)
    paper = model.h_value(v, v_star)[:, None] / 2 * model.unit(w) - half * other * middle
    torch.testing.assert_close(
        model.coarse_relu(v, w, v_star, w_star), paper / model.ROOT, rtol=1e-10, atol=1e-12
    )


def test_lemma_5_bounds_the_coarse_gradient():
    """For relu, ||E g||^2 <= A (||df/dv||^2 + <E g, df/dw>) where ||v|| <= 3; A over many draws."""
    generator = torch.Generator().manual_seed(2)
    v, v_star, w, w_star = (
        torch.randn(20_000, k, generator=generator, dtype=torch.float64) for k in (3, 3, 4, 4)
    )
    v = v * (3 / v.norm(dim=-1, keepdim=True)).clamp(max=1)
    w, w_star, v_star = model.unit(w), model.unit(w_star), model.unit(v_star)
    g = model.coarse_relu(v, w, v_star, w_star)
    below = model.gradient_v(v, w, v_star, w_star).square().sum(-1)
    below = below + (g * model.gradient_w(v, w, v_star, w_star)).sum(-1)
    assert (g.square().sum(-1) / below).max() < 100


@pytest.mark.parametrize("name", DERIVATIVES)
def test_at_the_origin_the_definitions_hold(name):
    v, v_star, w_star = vector(1, 2, -0.3), vector(1, -1, 0.5), vector(0.6, 0.8)
    w = vector(0, 0)
    slope = family_slope(name, sharpness=ESTIMATORS[name].sharpness(0.5))
    found = sampled.sample_coarse(v, w, v_star, w_star, slope=slope, samples=200_000, seed=1)
    closed = coarse_general(v, w, v_star, w_star, slope=slope)
    assert ((found.mean - closed).abs() <= 5 * found.error).all()
    if name in CLOSED:
        torch.testing.assert_close(CLOSED[name](v, w, v_star, w_star), closed)
    if name in ONE_SIDED:
        assert torch.equal(closed, vector(0, 0))


def test_at_the_origin_the_loss_is_flat():
    v, v_star, w_star = vector(1, 2, -0.3), vector(1, -1, 0.5), vector(0.6, 0.8)
    point = (v, vector(0, 0), v_star, w_star)
    found = sampled.sample_loss(*point, samples=200_000, seed=0)
    assert abs(found.mean - model.loss(*point)) <= 5 * found.error
    assert torch.equal(model.gradient_v(*point), vector(0, 0, 0))
    assert torch.equal(model.gradient_w(*point), vector(0, 0))


def test_batches_of_any_shape():
    generator = torch.Generator().manual_seed(4)
    v, w = (torch.randn(2, 5, k, generator=generator, dtype=torch.float64) for k in (3, 4))
    v_star = torch.randn(3, generator=generator, dtype=torch.float64)
    w_star = model.unit(torch.randn(4, generator=generator, dtype=torch.float64))
    slope = family_slope("dsq")
    many = coarse_general(v, w, v_star, w_star, slope=slope)
    assert many.shape == (2, 5, 4)
    torch.testing.assert_close(
        many[1, 3], coarse_general(v[1, 3], w[1, 3], v_star, w_star, slope=slope)
    )
