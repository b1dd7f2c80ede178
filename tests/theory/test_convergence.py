"""Experiment a: dynamics against a literal loop, bookkeeping, and verdicts that can fail."""

import math

import pytest
import torch

from qat.theory import convergence, descent
from qat.theory import landscape as land
from qat.theory import two_layer as model

V_STAR = torch.tensor(convergence.V_STAR, dtype=torch.float64)


def vector(values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.fixture
def short(monkeypatch):
    """Enough to come to rest, and past the collapse of the identity's ||w|| at eta t = 20.6."""
    monkeypatch.setattr(convergence, "STEPS", 2000)
    monkeypatch.setattr(convergence, "RUNS", 20)
    monkeypatch.setattr(convergence, "ETAS_BESIDE", (0.05, 0.02))
    monkeypatch.setattr(descent, "_STATES", 5000)


def verdicts(result):
    return {c.text.partition(" (arXiv")[0]: c.verdict for c in result.claims}


@pytest.mark.slow
def test_claims_of_a_short_run(short):
    found = verdicts(convergence.run())
    assert len(found) == 9
    assert set(found.values()) == {"held", "held with a condition"}


@pytest.mark.slow
@pytest.mark.parametrize("wrong", [lambda g: -g, lambda g: g.flip(-1), lambda g: g + 0.05])
def test_a_wrong_gradient_is_noticed(short, monkeypatch, wrong):
    """Turned round, its axes exchanged, shifted: the claims on relu must fail."""
    spoilt = {**convergence.COARSE, "relu": lambda *a: wrong(model.coarse_relu(*a))}
    monkeypatch.setattr(convergence, "COARSE", spoilt)
    found = [c for c in convergence.run().claims if c.text.startswith("relu")]
    assert "not held" in {c.verdict for c in found}


@pytest.mark.slow
def test_claims_on_the_identity_fail_for_an_estimator_that_descends(short, monkeypatch):
    monkeypatch.setattr(
        convergence, "COARSE", {**convergence.COARSE, "identity": model.coarse_relu}
    )
    found = [c for c in convergence.run().claims if "identity" in c.text]
    assert [c.verdict for c in found] == ["not held"] * 3


def test_descent_against_a_literal_loop():
    starts = descent.Starts(
        v=vector([[0.5, 0.1]]),
        w=vector([[0.2, 1.0]]),
        v_star=vector([[1.0, -0.5]]),
        eta=vector([[0.1]]),
    )
    path = descent.descend(model.coarse_relu, starts, steps=50)
    a, b, x, y = 0.5, 0.1, 0.2, 1.0
    for t in range(51):
        theta, size = math.atan2(y, x), math.hypot(x, y)
        c, s, total = 1 - 2 * theta / math.pi, 0.5, a + b
        f = a * a + b * b + total**2 - 2 * (c * (a - 0.5 * b) + total * s) + 1.25 + s * s
        assert path.loss[t, 0].item() == pytest.approx(f / 8, abs=1e-13)
        assert path.norm[t, 0].item() == pytest.approx(size, abs=1e-13)
        own, other = a * a + b * b + total**2 - s * total, a - 0.5 * b
        k = 0.1 / (2 * math.sqrt(2 * math.pi))
        a, b = a - 0.1 * (a - c + total - s) / 4, b - 0.1 * (b + 0.5 * c + total - s) / 4
        x, y = x - k * (own * x / size - other), y - k * own * y / size


def _path(loss, theta, norm=None):
    loss = vector(loss).T
    return descent.Path(
        loss=loss,
        norm=torch.ones_like(loss) if norm is None else vector(norm).T,
        theta=vector(theta),
        v_star=V_STAR.expand(len(theta), -1),
    )


def test_end_points():
    spurious, saddle = float(land.spurious_loss(V_STAR)), float(land.saddle_angle(V_STAR))
    at_saddle = float(land.reduced_loss(torch.tensor(1 - 2 * saddle / math.pi), V_STAR))
    restless = [0.0] * 38 + [0.5, 0.0]
    path = _path(
        [[0.0] * 40, [spurious] * 40, [at_saddle] * 40, restless, [0.3] * 40, [spurious] * 40],
        [0.0, math.pi, saddle, 0.0, 1.0, 1.0],
    )
    assert descent.end_points(path) == {"global": 1, "spurious": 1, "saddle": 1, "elsewhere": 3}


def test_rises_and_where_they_started():
    path = _path([[3, 2, 2.5, 1], [3, 2, 1, 1]], [0, 0], [[1, 0.4, 0.2, 2], [1, 1, 1, 1]])
    assert path.rises.tolist() == [[False, False], [True, False], [False, False]]
    assert path.largest_rise == 0.5
    assert path.norm_of_rise == pytest.approx(0.4)
    assert path[1:2].norm_of_rise == 0


@pytest.mark.slow
def test_a_saddle_is_stationary_and_unstable():
    v, w = convergence.saddle(V_STAR)
    w = w + vector([[0.0, 0.0], [1e-3, 0.0], [-1e-3, 0.0]])
    starts = descent.Starts(
        v=v.expand(3, -1),
        w=w,
        v_star=V_STAR.expand(3, -1),
        eta=torch.full((3, 1), 0.05, dtype=torch.float64),
    )
    near = descent.descend(model.coarse_relu, starts, steps=100)
    assert descent.end_points(near)["saddle"] == 3
    far = descent.descend(model.coarse_relu, starts, steps=4000)
    assert descent.end_points(far[1:2])["global"] == 1
    assert descent.end_points(far[2:3])["spurious"] == 1
    assert far.largest_rise < descent.RISE


def test_parts_are_found_again():
    one = descent.Starts(**_fields(2, 1.0))
    starts, parts = descent.join({"a": one, "b": descent.Starts(**_fields(3, 2.0))})
    assert starts.v.shape == (5, 3)
    assert (starts.eta[parts["a"]] == 1).all()
    assert (starts.eta[parts["b"]] == 2).all()


def _fields(count, value):
    sizes = {"v": 3, "w": 2, "v_star": 3, "eta": 1}
    return {key: torch.full((count, size), value) for key, size in sizes.items()}


def test_safe_steps():
    """A step against the gradient is safe for no C; one that moves v alone, for C <= 2."""
    assert descent.safe_step_factor(lambda *a: -model.coarse_relu(*a), V_STAR, seed=0) == 0
    assert 0 < descent.safe_step_factor(model.coarse_relu, V_STAR, seed=0) < 1

    def still(v, w, v_star, w_star):
        return torch.zeros_like(w)

    # eta <= C at ||w|| = 1; f is a quadratic in v with the curvature (m + 1) / 4 = 1
    assert descent.safe_step_factor(still, V_STAR, seed=0) == 2.0


def test_stationarity_notices_a_moved_point(monkeypatch):
    found = convergence.stationarity(model.coarse_relu)
    assert max(found.values()) < 1e-12
    wrong = convergence.stationarity(lambda *a: model.coarse_relu(*a) + 1e-9)
    assert min(wrong.values()) > 1e-10
