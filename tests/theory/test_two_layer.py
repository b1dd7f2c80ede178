"""The two-linear-layer model: closed forms against sampling, autograd and the worked example."""

import math

import pytest
import torch

from qat.functional.ste import DERIVATIVES, ESTIMATORS
from qat.theory import landscape as land
from qat.theory import two_layer as model
from qat.theory.general_estimator import coarse_general, family_slope, moments
from support import monte_carlo as sampled

COARSE = {
    "identity": model.coarse_identity,
    "relu": model.coarse_relu,
    "clipped_relu": model.coarse_clipped_relu,
}
SAMPLES = 1_000_000


def vector(*values):
    return torch.tensor(values, dtype=torch.float64)


EXAMPLE = (vector(1, 2), vector(1, 0), vector(1, -1), vector(0.5, math.sqrt(3) / 2))


def draws(count, m, n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    v, v_star, w, w_star = (
        torch.randn(count, k, generator=generator, dtype=torch.float64) for k in (m, m, n, n)
    )
    return v, w, v_star, w_star / w_star.norm(dim=-1, keepdim=True)


def within_five_errors(estimate, closed):
    assert (estimate.error > 0).all()
    assert ((estimate.mean - closed).abs() <= 5 * estimate.error).all()


def test_the_worked_example():
    """m = n = 2, theta = pi / 3, numbers to eight digits."""
    v, _, v_star, _ = EXAMPLE
    near = {"rtol": 0, "atol": 1e-7}
    torch.testing.assert_close(model.loss(*EXAMPLE), vector(2.08333333)[0], **near)
    torch.testing.assert_close(model.gradient_v(*EXAMPLE), vector(0.91666667, 1.33333333), **near)
    torch.testing.assert_close(model.gradient_w(*EXAMPLE), vector(0, 0.15915494), **near)
    assert model.h_value(v, v_star).item() == pytest.approx(13)
    expected = {
        "relu": ((2.89233153, 0.17274707), 0.02749355),
        "identity": ((2.19418254, 0.34549415), 0.05498710),
        "clipped_relu": ((1.12099522, 0.12986899), 0.02066929),
    }
    for name, (gradient, inner) in expected.items():
        g = COARSE[name](*EXAMPLE)
        torch.testing.assert_close(g, vector(*gradient), **near)
        assert (g * model.gradient_w(*EXAMPLE)).sum().item() == pytest.approx(inner, abs=1e-7)


@pytest.mark.parametrize("seed", [0, 1])
def test_loss_and_gradient_in_v_against_a_million_samples(seed):
    v, w, v_star, w_star = (x[0] for x in draws(1, 3, 2, seed))
    arguments = (v, w, v_star, w_star)
    within_five_errors(
        sampled.sample_loss(*arguments, samples=SAMPLES, seed=seed), model.loss(*arguments)
    )
    within_five_errors(
        sampled.sample_gradient_v(*arguments, samples=SAMPLES, seed=seed),
        model.gradient_v(*arguments),
    )


@pytest.mark.parametrize("name", DERIVATIVES)
def test_coarse_gradients_against_a_million_samples(name):
    member = ESTIMATORS[name]
    slope = family_slope(name, sharpness=member.sharpness(0.6))
    estimate = sampled.sample_coarse(*EXAMPLE, slope=slope, samples=SAMPLES, seed=7)
    within_five_errors(estimate, coarse_general(*EXAMPLE, slope=slope))
    if name in COARSE:
        within_five_errors(estimate, COARSE[name](*EXAMPLE))


def test_the_sampling_error_is_the_error():
    """Forty estimates scatter as their own standard errors say."""
    scores = []
    for seed in range(40):
        estimate = sampled.sample_loss(*EXAMPLE, samples=4000, seed=seed)
        scores.append(((estimate.mean - model.loss(*EXAMPLE)) / estimate.error).item())
    assert 0.6 < torch.tensor(scores).std().item() < 1.5


@pytest.mark.parametrize("name", COARSE)
@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
def test_quadrature_equals_the_closed_forms(name, scale):
    v, w, v_star, w_star = draws(300, 3, 4)
    w = w * scale
    general = coarse_general(v, w, v_star, w_star, slope=family_slope(name))
    torch.testing.assert_close(general, COARSE[name](v, w, v_star, w_star), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", DERIVATIVES)
def test_quadrature_does_not_depend_on_its_panels(name, monkeypatch):
    sizes, thetas = vector(0.3, 1.0, 4.0), vector(1e-4, 1.2, 3.1)
    slope = family_slope(name, sharpness=ESTIMATORS[name].sharpness(1.0))
    coarse = moments(sizes, thetas, slope=slope)
    monkeypatch.setattr("qat.theory.general_estimator._NODES", 48)
    for one, other in zip(coarse, moments(sizes, thetas, slope=slope), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_inner_products_are_not_negative_over_a_thousand_draws():
    arguments = draws(1000, 3, 4, seed=5)
    v, w, v_star, _ = arguments
    true = model.gradient_w(*arguments)
    theta, other = model.angle(w, arguments[3]), (v * v_star).sum(-1)
    closed = torch.sin(theta) * other.square() / (model.ROOT**3 * w.norm(dim=-1))
    for name, factor in (("identity", 1.0), ("relu", 0.5)):
        inner = (COARSE[name](*arguments) * true).sum(-1)
        torch.testing.assert_close(inner, factor * closed, rtol=1e-8, atol=1e-12)
        assert (inner >= 0).all()
    inner = (model.coarse_clipped_relu(*arguments) * true).sum(-1)
    half = model.normal_cdf(1 / (w.norm(dim=-1) * torch.sin(theta))) - 0.5
    lemma = other.square() * torch.sin(theta) * half / (2 * math.pi * w.norm(dim=-1) * model.ROOT)
    torch.testing.assert_close(inner, lemma, rtol=1e-8, atol=1e-12)
    assert (inner >= 0).all()


def test_gradients_are_those_of_the_loss():
    v, w, v_star, w_star = draws(50, 3, 4, seed=2)
    v.requires_grad_()
    w.requires_grad_()
    model.loss(v, w, v_star, w_star).sum().backward()
    torch.testing.assert_close(v.grad, model.gradient_v(v.detach(), w.detach(), v_star, w_star))
    torch.testing.assert_close(w.grad, model.gradient_w(v.detach(), w.detach(), v_star, w_star))


def test_fixed_second_layer_is_the_special_case():
    """v = v*: f = ||v||^2 theta / (2 pi), E g_relu = ||v||^2 (w_hat - w*) / (2 sqrt(2 pi))."""
    v, w, _, w_star = draws(200, 3, 4, seed=3)
    theta, energy = model.angle(w, w_star), v.square().sum(-1)
    torch.testing.assert_close(model.loss(v, w, v, w_star), energy * theta / (2 * math.pi))
    g = model.coarse_relu(v, w, v, w_star)
    expected = energy[:, None] * (model.unit(w) - w_star) / (2 * model.ROOT)
    torch.testing.assert_close(g, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(
        g.norm(dim=-1), energy * torch.sin(theta / 2) / model.ROOT, rtol=1e-9, atol=1e-12
    )


def test_the_ends_of_the_angle_and_the_origin():
    v, v_star, w_star = vector(1, 2, -0.3), vector(1, -1, 0.5), vector(0.6, 0.8)
    for w, theta in ((w_star, 0.0), (-w_star, math.pi)):
        assert model.angle(w, w_star).item() == theta
        assert torch.equal(model.gradient_w(v, w, v_star, w_star), vector(0, 0))
        for name, coarse in COARSE.items():
            g = coarse(v, w, v_star, w_star)
            general = coarse_general(v, w, v_star, w_star, slope=family_slope(name))
            torch.testing.assert_close(g, general, rtol=1e-10, atol=1e-12)
    origin = model.loss(v, vector(0, 0), v_star, w_star).item()
    assert origin == pytest.approx((v_star.square().sum() + v_star.sum() ** 2).item() / 8)


def test_the_angle_is_accurate_where_an_arc_cosine_is_not():
    w_star = vector(1, 0)
    for gap in (1e-9, 1e-5, math.pi - 1e-9):
        w = vector(math.cos(gap), math.sin(gap))
        assert model.angle(w, w_star).item() == pytest.approx(gap, rel=1e-9)


def test_the_best_v_and_the_reduced_loss():
    _, _, v_star, _ = draws(20, 4, 2, seed=4)
    w_star = vector(1, 0).expand(20, -1)
    theta = torch.linspace(0.1, 3.0, 20, dtype=torch.float64)
    c, w = 1 - 2 * theta / math.pi, land.direction(w_star, theta)
    torch.testing.assert_close(model.angle(w, w_star), theta)
    v = land.best_v(c, v_star)
    zero = torch.zeros_like(v)
    torch.testing.assert_close(model.gradient_v(v, w, v_star, w_star), zero, rtol=0, atol=1e-12)
    torch.testing.assert_close(model.loss(v, w, v_star, w_star), land.reduced_loss(c, v_star))
    worse = model.loss(v + 1e-3 * torch.randn_like(v), w, v_star, w_star)
    assert (worse > land.reduced_loss(c, v_star)).all()


def test_saddles_and_spurious_minima_are_where_the_paper_says():
    _, _, v_star, _ = draws(400, 3, 2, seed=6)
    exists = land.has_spurious_minimum(v_star)
    assert 20 < int(exists.sum()) < 400
    grid = torch.linspace(-1, 1, 2001, dtype=torch.float64)
    for i in range(0, 400, 20):
        line = land.reduced_loss(grid, v_star[i].expand(len(grid), -1))
        assert (line[0] < line[1]).item() == exists[i].item()  # c = -1 is theta = pi
    some = v_star[exists]
    w_star = vector(1, 0).expand(len(some), -1)
    theta = land.saddle_angle(some)
    assert ((theta > math.pi / 2) & (theta < math.pi)).all()
    w, v = land.direction(w_star, theta), land.best_v(1 - 2 * theta / math.pi, some)
    # a saddle: v is at its best and v^T v* = 0 makes the gradient in w vanish
    assert model.gradient_w(v, w, some, w_star).abs().max() < 1e-12
    spurious = land.spurious_v(some)
    torch.testing.assert_close(spurious, land.best_v(-torch.ones(len(some)).double(), some))
    torch.testing.assert_close(
        model.loss(spurious, -w_star, some, w_star), land.spurious_loss(some)
    )
    assert model.h_value(spurious, some).abs().max() < 1e-12
    for name in ("relu", "clipped_relu"):
        assert COARSE[name](spurious, -w_star, some, w_star).abs().max() < 1e-12
    m, s = 3, some.sum(-1)
    lemma = 2 * (m - 1) * s.square() / (model.ROOT * (m + 1) ** 2)
    torch.testing.assert_close(
        model.coarse_identity(spurious, -w_star, some, w_star).norm(dim=-1), lemma
    )
