"""COMQ on Gram matrices: closed forms, brute force, and an independent loop over the images."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qat.functional.comq import comq, fitted_scale, output_error
from qat.functional.grid import uniform_levels
from qat.functional.power_of_two import nearest_power, power_of_two_levels

GRIDS = {
    "binary": (-1.0, 1.0),
    "ternary": (-1.0, 0.0, 1.0),
    "uniform_3": uniform_levels(3),
    "uniform_8": uniform_levels(8),
    "power_of_two_4": power_of_two_levels(4),
}


def problem(seed, groups=1, rows=3, inputs=6, images=20, mixed=True):
    """Weights (G, R, N), inputs X (G, M, N) and their Gram matrix, float64."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x = draw(groups, images, inputs)
    if mixed:
        x = x @ draw(groups, inputs, inputs) + 0.5
    return draw(groups, rows, inputs), x, x.transpose(1, 2) @ x


def nearest(t, levels):
    return levels[(t.unsqueeze(-1) - levels).abs().argmin(dim=-1)]


def slow_comq(w, x, scale, levels, sweeps, order, moves_scale):
    """One row, by its residual on the images, as the paper has it."""
    q, z = w.clone(), torch.zeros_like(w)
    turns = range(len(w))
    if order == "greedy":
        turns = sorted(turns, key=lambda i: -float(x[:, i].norm() * w[i].abs()))
    for _ in range(sweeps):
        for i in turns:
            u = x @ (w - q) + x[:, i] * q[i]
            z[i] = nearest((x[:, i] @ u) / (x[:, i] @ x[:, i]) / scale, levels)
            q[i] = scale * z[i]
        if moves_scale:
            scale = (x @ w) @ (x @ z) / ((x @ z) @ (x @ z))
            q = scale * z
    return z, scale


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("order", ["cyclic", "greedy"])
@pytest.mark.parametrize("moves_scale", [False, True])
def test_equals_a_loop_over_the_images(grid, order, moves_scale):
    w, x, gram = problem(0, groups=2)
    levels = torch.tensor(GRIDS[grid], dtype=torch.float64)
    scale = w.abs().mean(dim=2, keepdim=True) / levels.max()
    options = {"sweeps": 3, "order": order, "moves_scale": moves_scale}
    z, s = comq(w, gram, scale, levels, **options)
    for g, r in itertools.product(range(2), range(3)):
        own = slow_comq(w[g, r], x[g], scale[g, r, 0], levels, 3, order, moves_scale)
        assert torch.equal(z[g, r], own[0])
        torch.testing.assert_close(s[g, r, 0], own[1])


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("order", ["cyclic", "greedy"])
def test_orthogonal_inputs_give_rounding(grid, order):
    w, _, _ = problem(1, rows=5)
    gram = torch.diag(torch.arange(1.0, 7)).double().unsqueeze(0)
    levels = torch.tensor(GRIDS[grid], dtype=torch.float64)
    scale = torch.full((1, 5, 1), 0.4, dtype=torch.float64)
    z, s = comq(w, gram, scale, levels, order=order, moves_scale=False)
    assert torch.equal(z, nearest(w / scale, levels))
    assert torch.equal(s, scale)


@given(st.integers(0, 10**6), st.sampled_from(sorted(GRIDS)), st.sampled_from(["cyclic", "greedy"]))
def test_no_sweep_from_the_grid_raises_the_error(seed, grid, order):
    w, _, gram = problem(seed)
    levels = torch.tensor(GRIDS[grid], dtype=torch.float64)
    scale = w.abs().mean(dim=2, keepdim=True) / levels.max()
    start = nearest(w / scale, levels) * scale
    before = output_error(w, start, gram)
    for _ in range(4):
        z, scale = comq(w, gram, scale, levels, start=start, sweeps=1, order=order)
        start = z * scale
        after = output_error(w, start, gram)
        assert (after <= before * (1 + 1e-9) + 1e-9).all()
        before = after


@given(st.integers(0, 10**6))
def test_at_a_fixed_point_no_single_code_is_better(seed):
    w, _, gram = problem(seed, rows=1, inputs=4)
    levels = torch.tensor(uniform_levels(3), dtype=torch.float64)
    scale = torch.full((1, 1, 1), 0.5, dtype=torch.float64)
    z, _ = comq(w, gram, scale, levels, sweeps=50, moves_scale=False)
    least = output_error(w, z * scale, gram)
    for i, level in itertools.product(range(4), levels):
        other = z.clone()
        other[0, 0, i] = level
        assert output_error(w, other * scale, gram) >= least - 1e-9


def test_finds_the_optimum_of_most_tiny_problems_and_never_less_than_it():
    levels = torch.tensor(GRIDS["ternary"], dtype=torch.float64)
    every = torch.tensor(list(itertools.product(levels.tolist(), repeat=5)), dtype=torch.float64)
    scale, found = torch.full((1, 1, 1), 0.8, dtype=torch.float64), 0
    for seed in range(40):
        w, _, gram = problem(seed, rows=1, inputs=5, mixed=False)
        least = output_error(w.expand(1, len(every), 5), every.unsqueeze(0) * 0.8, gram).min()
        z, _ = comq(w, gram, scale, levels, sweeps=10, moves_scale=False)
        error = output_error(w, z * scale, gram).item()
        assert error >= least - 1e-9
        found += error <= least + 1e-9
    assert found >= 30


def test_the_scale_is_the_least_squares_one():
    w, _, gram = problem(2, groups=2)
    z = nearest(w / 0.5, torch.tensor(uniform_levels(4), dtype=torch.float64))
    for scale in (torch.ones(2, 3, 1).double(), torch.ones(1, 1, 1).double()):
        s = fitted_scale(w, z, gram, scale)
        assert s.shape == scale.shape
        sums = [output_error(w, z * (s + d), gram).sum() for d in (-1e-3, 0.0, 1e-3)]
        assert sums[1] < min(sums[0], sums[2])
        assert sums[0] - sums[1] == pytest.approx(sums[2] - sums[1])  # the vertex of a parabola
    zeros = torch.zeros_like(z)
    assert torch.equal(fitted_scale(w, zeros, gram, scale), scale)


def test_one_scale_of_all_rows_stays_one():
    w, _, gram = problem(3, groups=2)
    levels = torch.tensor(uniform_levels(4), dtype=torch.float64)
    z, s = comq(w, gram, torch.full((1, 1, 1), 0.3, dtype=torch.float64), levels)
    assert s.shape == (1, 1, 1)
    assert torch.isin(z, levels).all()


def test_inputs_that_are_always_zero_are_rounded():
    w, _, gram = problem(4)
    gram[:, 2], gram[:, :, 2] = 0, 0
    levels = torch.tensor(uniform_levels(4), dtype=torch.float64)
    scale = torch.full((1, 3, 1), 0.3, dtype=torch.float64)
    for order in ("cyclic", "greedy"):
        z, _ = comq(w, gram, scale, levels, order=order, moves_scale=False)
        assert torch.equal(z[:, :, 2], nearest(w[:, :, 2] / 0.3, levels))


def test_powers_of_two_keep_scales_that_are_powers_of_two():
    w, _, gram = problem(5)
    levels = torch.tensor(power_of_two_levels(4), dtype=torch.float64)
    _, s = comq(w, gram, torch.ones(1, 3, 1).double(), levels, allowed=nearest_power)
    assert torch.equal(torch.exp2(s.log2().round()), s)
    assert nearest_power(torch.tensor([0.0, 1.0, 1.49, 1.51, 3.1])).tolist() == [0, 1, 1, 2, 4]
