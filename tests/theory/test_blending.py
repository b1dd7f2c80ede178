"""Experiment c: the iteration against a literal loop, its problems, and verdicts that can fail."""

import math

import pytest
import torch

from qat.theory import blended_descent, blending, blending_problems
from qat.theory import two_layer as model
from qat.theory.blended_descent import descend, project


def draw(count, n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, n, generator=generator, dtype=torch.float64)


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(blending, "PROBLEMS", 30)
    monkeypatch.setattr(blending, "STEPS", 150)


def test_claims_of_a_short_run(short):
    found = [c.verdict for c in blending.run().claims]
    assert found[:3] == ["held", "held with a condition", "held with a condition"]
    assert found[3:] == ["held", "held", "not held", "not held"]


def test_the_inequality_needs_the_exact_projection(short, monkeypatch):
    monkeypatch.setattr(blended_descent, "project", lambda w: 1.5 * project(w))
    assert [c.verdict for c in blending.run().claims][:3] == ["not held"] * 3


@pytest.mark.slow
def test_the_inequality_needs_the_gradient(short, monkeypatch):
    right = blending_problems.quadratics

    def wrong(*args, **kwargs):
        problem = right(*args, **kwargs)
        return blended_descent.Problem(
            value=problem.value,
            gradient=lambda w: problem.gradient(w).flip(-1),
            smoothness=problem.smoothness,
        )

    monkeypatch.setattr(blending_problems, "quadratics", wrong)
    assert blending.run().claims[0].verdict == "not held"


def test_iteration_against_a_literal_loop():
    problem = blending_problems.quadratics(2, 5, generator=torch.Generator().manual_seed(1))
    start = draw(2, 5)
    path = descend(problem, start, rho=0.2, eta=0.1, steps=30)
    for p in range(2):
        latent = start[p].tolist()
        for t in range(31):
            scale = sum(map(abs, latent)) / 5
            w = [-scale if x < 0 else scale for x in latent]
            both = torch.tensor([w, w], dtype=torch.float64)
            assert path.loss[t, p].item() == pytest.approx(problem.value(both)[p].item(), rel=1e-12)
            g = problem.gradient(both)[p].tolist()
            latent = [0.8 * x + 0.2 * y - 0.1 * d for x, y, d in zip(latent, w, g, strict=True)]


def test_projection_is_the_nearest_binary_point():
    w = draw(50, 6, seed=1)
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 6).double()
    scale = (w @ signs.T / 6).clamp(min=0)
    nearest = (w[:, None] - scale[..., None] * signs).norm(dim=-1).amin(dim=1)
    torch.testing.assert_close((w - project(w)).norm(dim=-1), nearest)


@pytest.mark.parametrize(
    "make",
    [blending_problems.angle_loss, blending_problems.relu_potential],
    ids=lambda f: f.__name__,
)
def test_gradient_and_curvature_of_the_model(make):
    """Gradients are autograd's, and `smoothness` at a point is the norm of the Hessian."""
    w_star, w = model.unit(draw(20, 4, seed=2)), draw(20, 4, seed=3)
    problem = make(w_star)
    w.requires_grad_()
    value = problem.value(w)
    (gradient,) = torch.autograd.grad(value.sum(), w)
    torch.testing.assert_close(problem.gradient(w.detach()), gradient)
    found = problem.smoothness(w.detach(), w.detach())
    for p in range(20):
        one = make(w_star[p : p + 1])
        hessian = torch.autograd.functional.hessian(
            lambda x, one=one: one.value(x[None])[0], w[p].detach()
        )
        norm = torch.linalg.eigvalsh(hessian).abs().max().item()
        assert found[p].item() == pytest.approx(norm, rel=1e-6)


def test_quadratics_are_normalised():
    problem = blending_problems.quadratics(5, 4, generator=torch.Generator().manual_seed(2))
    zero = torch.zeros(5, 4, dtype=torch.float64)
    torch.testing.assert_close(problem.value(zero), torch.ones(5, dtype=torch.float64))
    basis = torch.eye(4, dtype=torch.float64)
    h = torch.stack([problem.gradient(e.expand(5, -1)) - problem.gradient(zero) for e in basis], 1)
    torch.testing.assert_close(torch.linalg.eigvalsh(h)[:, -1], torch.ones(5, dtype=torch.float64))


def test_the_angle_loss_is_the_angle():
    w_star, w = model.unit(draw(9, 3, seed=4)), draw(9, 3, seed=5)
    cosine = (w * w_star).sum(-1) / w.norm(dim=-1)
    found = blending_problems.angle_loss(w_star).value(w)
    torch.testing.assert_close(found, torch.acos(cosine) / (2 * math.pi))
