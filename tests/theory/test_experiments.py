"""The experiments: their dynamics against literal loops, and verdicts that can fail."""

import math

import pytest
import torch
from torch.autograd import Function

from qat.functional.stairs import relu_stairs
from qat.functional.ste import coarse_slope
from qat.theory import classification, finite_samples, recurrence
from qat.theory import two_layer as model
from qat.theory.experiment import verdict
from qat.theory.general_estimator import family_slope
from qat.theory.laboratory import EXPERIMENTS, run_experiment


def test_verdicts():
    assert verdict(True) == "held"
    assert verdict(True, condition=True) == "held with a condition"
    assert verdict(False) == verdict(False, condition=True) == "not held"


def test_names():
    assert len(EXPERIMENTS) == 6
    with pytest.raises(KeyError):
        run_experiment("nothing")


# -- d: recurrence --------------------------------------------------------------------------------


def test_reduced_dynamics_are_those_of_the_coarse_gradient():
    w_star = recurrence.perturbed(4, 0.3, seed=0)[:5]
    y = torch.randn(5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    v = torch.ones(5, 2, dtype=torch.float64)
    w = recurrence.project_binary(y)
    factor = v.square().sum(-1, keepdim=True) / (2 * model.ROOT)
    torch.testing.assert_close(model.coarse_relu(v, w, v, w_star), factor * (w - w_star))


def test_simulation_against_a_literal_loop():
    w_star = recurrence.perturbed(4, 0.3, seed=2)[:3]
    found = recurrence.simulate(w_star, recurrence.project_binary, seed=3, steps=300)
    y = torch.randn(3, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    y = y * recurrence.RATE
    for d in range(3):
        hits = returns = 0
        state, there = y[d].tolist(), False
        for _ in range(300):
            w = [(-0.5 if value < 0 else 0.5) for value in state]
            now = all((a < 0) == (b < 0) for a, b in zip(w, w_star[d].tolist(), strict=True))
            hits, returns, there = hits + now, returns + (now and not there), now
            state = [
                value - recurrence.RATE * (a - b)
                for value, a, b in zip(state, w, w_star[d].tolist(), strict=True)
            ]
        assert found["at_optimum"][d].item() == hits / 300
        assert found["returns"][d].item() == pytest.approx(1000 * returns / 300)


def test_a_quantizable_optimum_is_settled_at():
    w_star = recurrence.perturbed(6, 0.0, seed=0)[:10]
    found = recurrence.simulate(w_star, recurrence.project_binary, seed=0, steps=400)
    assert found["settled"].all()
    assert (found["at_optimum"] > 0.5).all()
    assert (recurrence.lower_bound(w_star) > 1 - 1e-12).all()


def test_the_counter_example_in_exact_arithmetic():
    assert recurrence.counter_example(equal_phases=True) == 2000
    assert recurrence.counter_example(equal_phases=False) == 0


def test_ternary_projection_is_the_closest_direction():
    generator = torch.Generator().manual_seed(4)
    y = torch.randn(40, 4, generator=generator, dtype=torch.float64)
    codes = torch.cartesian_prod(*[torch.tensor([-1.0, 0.0, 1.0])] * 4).double()
    codes = codes[codes.abs().sum(-1) > 0]
    best = (model.unit(y) @ model.unit(codes).T).amax(dim=1)
    mine = (model.unit(y) * recurrence.project_ternary(y)).sum(-1)
    torch.testing.assert_close(mine, best)


# -- e: finite samples ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["relu", "identity"])
def test_batched_trials_against_a_single_one(name):
    trials = finite_samples.draw(5, 12, 3, noise=0.3, seed=0)
    slope = family_slope(name)
    u = trials.start
    for _ in range(20):
        u, _ = finite_samples.coarse_step(u, trials, slope)
    for t in range(3):
        own = trials.start[t].tolist()
        for _ in range(20):
            w = [(-1 if x < 0 else 1) / math.sqrt(5) for x in own]
            gradient = [0.0] * 5
            for z, label in zip(trials.z[t].tolist(), trials.label[t].tolist(), strict=True):
                x = sum(a * b for a, b in zip(z, w, strict=True))
                passes = 1.0 if name == "identity" or x > 0 else 0.0
                residual = (1.0 if x > 0 else 0.0) - label
                gradient = [
                    g + passes * residual * a / 12 for g, a in zip(gradient, z, strict=True)
                ]
            own = [x - finite_samples.ETA * g for x, g in zip(own, gradient, strict=True)]
        assert u[t].tolist() == pytest.approx(own, abs=1e-12)


def test_the_truth_is_a_fixed_point_without_noise_and_not_with_it():
    slope = family_slope("relu")
    for noise in (0.0, 0.5):
        trials = finite_samples.draw(8, 40, 4, noise=noise, seed=1)
        moved, _ = finite_samples.coarse_step(trials.w_star, trials, slope)
        assert torch.equal(moved, trials.w_star) == (noise == 0)


def test_success_needs_the_last_steps(monkeypatch):
    trials = finite_samples.draw(6, 60, 30, noise=0.0, seed=2)
    assert finite_samples.succeeds(trials, family_slope("identity")).double().mean() > 0.9
    few = finite_samples.draw(20, 5, 30, noise=0.0, seed=2)
    assert finite_samples.succeeds(few, family_slope("relu")).double().mean() < 0.2


# -- f: classification ----------------------------------------------------------------------------


class Staircase(Function):
    """ceil clipped to 0 .. 3, with a derivative given by name; written apart from the package."""

    @staticmethod
    def forward(ctx, z, name):
        ctx.save_for_backward(z)
        ctx.name = name
        return z.ceil().clamp(0, 3)

    @staticmethod
    def backward(ctx, grad):
        (z,) = ctx.saved_tensors
        return grad * coarse_slope(z, ctx.name, stairs=relu_stairs(2)), None


@pytest.mark.parametrize("name", ["identity", "clipped_relu", "dsq"])
@pytest.mark.parametrize("classes", [2, 3])
def test_classification_gradient_is_autograds(name, classes, monkeypatch):
    monkeypatch.setattr(classification, "SEEDS", 2)
    problem = classification.draw(classes, 4, seed=0)
    slope = classification.slopes()[name]
    gradient, wrong = classification.coarse_gradient(problem.start, problem, classes, slope)
    for seed in range(2):
        w = problem.start[seed].clone().requires_grad_()
        hidden = Staircase.apply(problem.x[seed] @ w.T, name)
        outputs = torch.stack(
            [hidden[:, 4 * k : 4 * k + 4].sum(dim=1) for k in range(classes)], dim=1
        )
        own = outputs[torch.arange(len(outputs)), problem.label]
        others = outputs.clone()
        others[torch.arange(len(outputs)), problem.label] = -math.inf
        rival = others.max(dim=1).values
        torch.relu(1 - own + rival).mean().backward()
        torch.testing.assert_close(gradient[seed], w.grad)
        assert wrong[seed].item() == pytest.approx((own <= rival).double().mean().item())


def test_classes_live_in_orthogonal_planes():
    problem = classification.draw(3, 4, seed=0)
    for k in range(3):
        points = problem.x[:, problem.label == k]
        inside = points[..., 2 * k : 2 * k + 2].norm(dim=-1)
        torch.testing.assert_close(inside, points.norm(dim=-1))
        assert ((inside >= 0.5) & (inside <= 2)).all()


def test_steps_to_zero():
    errors = torch.tensor([[0.5, 0.0, 0.1], [0.0, 0.0, 0.0], [0.0, 0.0, 0.2]])
    assert classification.steps_to_zero(errors).tolist() == [1, 0, 3]
