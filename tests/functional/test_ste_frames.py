"""Where the coarse derivatives look: the range and the cells of a staircase, and of the sign."""

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from qat.functional.staircase import staircase_ste
from qat.functional.stairs import Stairs, relu_stairs, signed_stairs
from qat.functional.ste import DERIVATIVES, ESTIMATORS, coarse_slope, sign_slope

CELL = [name for name in DERIVATIVES if ESTIMATORS[name].frame == "cell"]
INDEXED = ["identity", "relu", "clipped_relu"]
STAIRS = [*(relu_stairs(b) for b in range(1, 9)), *(signed_stairs(b) for b in range(2, 9))]
# as the in-graph weights have them: one more code below than above, and nearest codes 0 .. 3
STAIRS += [Stairs(low=-2, high=1, first=-2, shift=0.5), Stairs(low=0, high=3, first=0, shift=0.5)]


def grid(stairs, margin=3.0):
    """Dyadic positions, so that shifts by whole steps are exact."""
    count = round((stairs.high - stairs.low + 2 * margin) * 32)
    return stairs.low - margin + torch.arange(count, dtype=torch.float64) / 32


def jumps(stairs):
    return [code + stairs.shift for code in range(stairs.low, stairs.high)]


@pytest.mark.parametrize("progress", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", CELL)
def test_a_cell_member_acts_around_the_nearest_jump(name, progress):
    sharpness = ESTIMATORS[name].sharpness(progress)
    for stairs in STAIRS[:4] + STAIRS[8:11] + STAIRS[-2:]:
        z = grid(stairs)
        places = torch.tensor(jumps(stairs), dtype=torch.float64)
        away = z[:, None] - places
        nearest = away.abs().argmin(dim=1, keepdim=True)
        v = 2 * away.gather(1, nearest)[:, 0]
        expected = ESTIMATORS[name].slope(v, sharpness)
        result = coarse_slope(z, name, stairs=stairs, sharpness=sharpness)
        assert torch.equal(result, expected)
        # the outermost cells go on: beyond their half step too the nearest jump is the last one
        assert v.max() > 4
        assert v.min() < -4
        peaks = coarse_slope(places, name, stairs=stairs, sharpness=sharpness)
        assert torch.equal(peaks, ESTIMATORS[name].slope(torch.zeros_like(places), sharpness))


@pytest.mark.parametrize("name", CELL)
def test_inner_cells_repeat_with_the_step(name):
    for stairs in (relu_stairs(3), signed_stairs(4), STAIRS[-1]):
        z = grid(stairs)
        first, last = jumps(stairs)[0], jumps(stairs)[-1]
        inner = z[(z > first - 0.5) & (z < last - 0.5)]
        assert inner.numel() > 32
        late = ESTIMATORS[name].sharpness(1.0)  # at its start the power function is flat
        one = coarse_slope(inner, name, stairs=stairs, sharpness=late)
        assert torch.equal(one, coarse_slope(inner + 1, name, stairs=stairs, sharpness=late))
        assert one.unique().numel() > 1


@pytest.mark.parametrize("name", CELL)
def test_a_staircase_of_one_bit_is_the_sign_at_twice_the_position(name):
    z = grid(relu_stairs(1))
    assert torch.equal(coarse_slope(z, name, stairs=relu_stairs(1)), sign_slope(2 * z, name))


def test_the_sign_has_the_range_from_minus_one_to_one():
    x = torch.tensor([-math.inf, -3, -1, -0.999, -0.5, 0, 0.5, 1, 1.001, 3, math.inf]).double()
    u = [(value + 1) / 2 for value in x.tolist()]
    tables = {
        "identity": [1.0] * 11,
        "relu": [0.0] * 3 + [1.0] * 8,
        "clipped_relu": [0.0] * 3 + [1.0] * 5 + [0.0] * 3,
        "log_tailed_relu": [0.0] * 3 + [1.0] * 5 + [1 / u[8], 0.5, 0.0],
        "reverse_exponential": [0.0] * 3 + [math.exp(-place) for place in u[3:]],
    }
    for name, table in tables.items():
        assert sign_slope(x, name).tolist() == pytest.approx(table, rel=1e-12, abs=0)


@pytest.mark.parametrize("name", ["piecewise_quadratic", "periodic", "dsq", "clipped_relu"])
def test_the_integral_over_the_staircase_counts_its_steps(name):
    for stairs in (relu_stairs(2), signed_stairs(3), relu_stairs(1)):
        count = 200_000
        low, high = stairs.low - 2.0, stairs.high + 2.0
        z = low + (torch.arange(count, dtype=torch.float64) + 0.5) / count * (high - low)
        total = coarse_slope(z, name, stairs=stairs).mean().item() * (high - low)
        # the range begins half a step below the lowest level of a signed staircase
        wanted = stairs.count if name == "clipped_relu" else stairs.high - stairs.low
        assert total == pytest.approx(wanted, abs=1e-4)


POSITIONS = st.one_of(
    st.floats(-300, 300, width=32),
    st.sampled_from([math.inf, -math.inf, 1e6, -1e6, 0.0, -0.0, 1e-30, -1e-30]),
    st.integers(-600, 600).map(lambda number: number / 2),
)


def is_clear(z, stairs):
    """Off the upper end of a shifted range by more than the rounding of z - start."""
    distance = abs(z - (stairs.start + stairs.count))
    return distance == 0 or distance > 1e-4 or stairs.shift == 0


@settings(deadline=None, max_examples=300)
@given(
    st.lists(POSITIONS, min_size=1, max_size=30),
    st.sampled_from([s for s in STAIRS if s.count < 255]),
    st.sampled_from([1.0, 0.25, 0.37, 2.0]),
)
@example([-0.5, 0.0, 1.5, 3.0, 7.0, 7.5], signed_stairs(4), 1.0)
def test_the_index_path_is_the_slope_bit_for_bit(positions, stairs, alpha):
    step = torch.tensor(alpha)
    x = torch.tensor(positions) * step
    z = x / step
    clear = [is_clear(value, stairs) for value in z.tolist()]
    x, z = x[clear], z[clear]
    for name in INDEXED:
        leaf = x.clone().requires_grad_()
        staircase_ste(leaf, step, stairs=stairs, derivative=name).sum().backward()
        assert torch.equal(leaf.grad, coarse_slope(z, name, stairs=stairs))


@pytest.mark.parametrize("name", INDEXED)
@pytest.mark.parametrize("stairs", STAIRS, ids=str)
def test_the_index_path_at_every_threshold(stairs, name):
    ends = [stairs.start + k for k in range(-1, stairs.count + 2)]
    z = torch.tensor([end + off for end in ends for off in (-0.25, 0.0, 0.25)])
    leaf = z.clone().requires_grad_()
    alpha = torch.tensor(1.0, requires_grad=True)
    staircase_ste(leaf, alpha, stairs=stairs, derivative=name).sum().backward()
    assert torch.equal(leaf.grad, coarse_slope(z, name, stairs=stairs))
    covered = int(((z > stairs.start) & (z <= stairs.start + stairs.count)).sum())
    assert covered == 3 * stairs.count
    above = int((z > stairs.start).sum())
    wanted = {"identity": len(z), "relu": above, "clipped_relu": covered}
    assert leaf.grad.sum().item() == wanted[name]


@pytest.mark.parametrize("name", DERIVATIVES)
def test_no_sharpness_means_the_start_of_the_schedule(name):
    starts = {"tanh": 1e-3, "power": 1.0, "periodic": math.pi / 2, "dsq": 0.2, "swish_sign": 5.0}
    z = torch.linspace(-2, 5, 99)
    given = coarse_slope(z, name, stairs=relu_stairs(2), sharpness=starts.get(name, 0.0))
    assert torch.equal(coarse_slope(z, name, stairs=relu_stairs(2)), given)
    assert torch.equal(sign_slope(z, name), sign_slope(z, name, sharpness=starts.get(name, 0.0)))


@pytest.mark.parametrize("name", DERIVATIVES)
def test_far_away_is_finite(name):
    far = torch.tensor([math.inf, -math.inf, 1e38, -1e38, 1e6, -1e6])
    ends = {"identity": [1.0] * 6, "relu": [1.0, 0.0] * 3}.get(name, [0.0] * 6)
    for progress in (0.0, 1.0):
        # at its start the tanh is wide: t x = 1000 at 1e6
        sharpness = ESTIMATORS[name].sharpness(progress)
        for slopes in (
            coarse_slope(far, name, stairs=relu_stairs(2), sharpness=sharpness),
            coarse_slope(far, name, stairs=signed_stairs(2), sharpness=sharpness),
            sign_slope(far, name, sharpness=sharpness),
        ):
            assert slopes.tolist() == pytest.approx(ends, abs=3e-6)
