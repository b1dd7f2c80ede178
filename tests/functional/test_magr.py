"""MagR: its proximal map in closed form, its bounds, and its descent."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qat.functional.magr import clipped_to_ball, magr


def drawn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(st.integers(0, 10**6), st.floats(1e-3, 5), st.integers(1, 8))
def test_prox_cuts_the_largest_magnitudes_to_one_height(seed, t, count):
    v = drawn(seed, 3, count)
    u = clipped_to_ball(v, t)
    is_zero = v.abs().sum(dim=1) <= t
    assert (u[is_zero] == 0).all()
    tau = u.abs().amax(dim=1, keepdim=True)
    torch.testing.assert_close(u, v.clamp(-tau, tau))
    torch.testing.assert_close(
        (v - u).abs().sum(dim=1)[~is_zero], torch.full_like(v[:, 0], t)[~is_zero]
    )


@given(st.integers(0, 10**6), st.floats(1e-2, 3))
def test_prox_minimises(seed, t):
    v = drawn(seed, 1, 5)
    u = clipped_to_ball(v, t)

    def value(x):
        return ((x - v).square().sum(dim=1) / 2 + t * x.abs().amax(dim=1)).item()

    for step in range(30):
        assert value(u + 0.1 * drawn(seed + step + 1, 1, 5)) >= value(u) - 1e-9
    for height in torch.linspace(0, v.abs().max().item(), 50):
        assert value(v.clamp(-height, height)) >= value(u) - 1e-9


def test_prox_at_its_corners():
    v = torch.tensor([[3.0, -1.0, 0.0]])
    assert torch.equal(clipped_to_ball(v, 0.0), v)
    assert clipped_to_ball(v, 1.0).tolist() == [[2.0, -1.0, 0.0]]
    assert clipped_to_ball(v, 3.0).tolist() == [[0.5, -0.5, 0.0]]
    assert clipped_to_ball(v, 4.0).tolist() == [[0.0, 0.0, 0.0]]
    assert clipped_to_ball(torch.tensor([[2.0, -2.0]]), 1.0).tolist() == [[1.5, -1.5]]


@pytest.mark.parametrize("alpha", [1e-3, 1e-2, 0.1])
def test_bounds_and_descent(alpha):
    x = drawn(0, 2, 40, 3) @ drawn(1, 2, 3, 12)  # of rank 3
    gram, w = x.transpose(1, 2) @ x, drawn(2, 2, 5, 12)
    largest = torch.linalg.eigvalsh(gram)[:, -1].view(-1, 1, 1)

    def value(v):
        rest = v - w
        fit = (rest @ gram * rest).sum(dim=2, keepdim=True) / (2 * largest)
        return fit + alpha * v.abs().amax(dim=2, keepdim=True)

    peak, before = w.abs().amax(dim=2, keepdim=True), value(w)
    for rounds in (1, 2, 5, 20, 150):
        found = magr(w, gram, alpha=alpha, rounds=rounds)
        assert (value(found) <= before + 1e-12).all()
        before = value(found)
    assert (found.abs().amax(dim=2, keepdim=True) <= peak + 1e-12).all()
    moved = ((found - w) @ gram * (found - w)).sum(dim=2, keepdim=True)
    assert (moved <= 2 * alpha * largest * peak + 1e-9).all()
    assert found.abs().max() < peak.max()


def test_no_penalty_and_no_inputs_leave_weights_alone():
    w, x = drawn(0, 1, 4, 6), drawn(1, 1, 30, 6)
    assert torch.equal(magr(w, x.transpose(1, 2) @ x, alpha=0.0), w)
    near = magr(w, x.transpose(1, 2) @ x, alpha=1e-9)
    torch.testing.assert_close(near, w, atol=1e-6, rtol=0)
    assert magr(w, torch.zeros(1, 6, 6, dtype=torch.float64)).isfinite().all()
