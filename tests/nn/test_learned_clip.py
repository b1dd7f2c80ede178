"""LSQ, PACT and DoReFa activations against their formulas, written again by hand."""

import copy
import math

import pytest
import torch

from qat.functional.gaussian import gaussian_step
from qat.functional.stairs import Stairs
from qat.functional.ste import DERIVATIVES, ESTIMATORS, coarse_slope
from qat.nn.learned_clip import DorefaActivation, LsqActivation, PactActivation
from support.products import mostly_slow

KINDS = [LsqActivation, PactActivation, DorefaActivation]
X = torch.tensor([[-2.0, -0.7, -0.1, 0.0], [0.2, 0.75, 1.4, 9.0]])
UP = torch.tensor([[1.0, -2.0, 3.0, 1.0], [2.0, -1.0, 0.5, 4.0]])


def run(quantizer, x=X, upstream=UP):
    x = x.clone().requires_grad_()
    wanted = [x, *(p for p in quantizer.parameters() if p.requires_grad)]
    y = quantizer(x)
    return y.detach(), *torch.autograd.grad((y * upstream).sum(), wanted)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_lsq(bits, signed):
    quantizer = LsqActivation(bits, signed=signed)
    s = 0.3
    quantizer.scale.data.fill_(s)
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    points = X - 0.01  # off the ends of the clip, where conventions differ
    y, grad_x, grad_s = run(quantizer, points)
    total = 0.0
    for i, x in enumerate(points.flatten().tolist()):
        v = x / s
        code = min(max(round(v), low), high)
        assert y.flatten()[i].item() == pytest.approx(s * code, rel=1e-6)
        inside = low < v < high
        assert grad_x.flatten()[i].item() == UP.flatten()[i].item() * inside
        total += UP.flatten()[i].item() * (code - v if inside else code)
    # 4 elements an image, whatever the batch
    assert grad_s.item() == pytest.approx(total / math.sqrt(4 * high), rel=1e-4)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_pact(bits, signed):
    quantizer = PactActivation(bits, signed=signed, start=1.25)
    n = 2 ** (bits - 1) - 1 if signed else 2**bits - 1
    low = -1.25 if signed else 0.0
    y, grad_x, grad_a = run(quantizer)
    above = X >= 1.25
    below = low > X
    clipped = X.clamp(low, 1.25)
    torch.testing.assert_close(y, torch.round(clipped * n / 1.25) * 1.25 / n)
    assert torch.equal(grad_x, UP * ~(above | below))
    saturated = UP[above].sum() - (UP[below].sum() if signed else 0)
    assert grad_a.item() == pytest.approx(saturated.item())


def test_a_large_clip_is_a_relu_on_a_uniform_grid():
    quantizer = PactActivation(8, start=255.0)
    x = torch.randint(-50, 200, (100,)).float()
    assert torch.equal(quantizer(x), x.clamp(min=0))


@pytest.mark.parametrize("bits", range(1, 9))
def test_dorefa_is_the_uniform_grid_on_the_unit_interval(bits):
    quantizer = DorefaActivation(bits)
    assert not any(p.requires_grad for p in quantizer.parameters())
    quantizer.start_from(7.0)
    n = 2**bits - 1
    x = torch.linspace(-0.5, 1.5, 333)
    torch.testing.assert_close(quantizer(x), torch.round(x.clamp(0, 1) * n) / n)
    assert len(quantizer(torch.linspace(0, 1, 5000)).unique()) == n + 1


def test_starts():
    lsq, pact = LsqActivation(4), PactActivation(4)
    assert lsq.needs_batches
    assert not pact.needs_batches
    assert pact.clip.item() == 10
    total, count = lsq.measure(X)
    assert (total, count) == (pytest.approx(X.clamp(min=0).sum().item()), 8)
    lsq.start_from(total / count)
    assert lsq.scale.item() == pytest.approx(2 * total / count / math.sqrt(15))
    total, count = pact.measure(X)
    assert (total, count) == (pytest.approx((X.clamp(min=0) ** 2).sum().item(), rel=1e-6), 4)
    pact.start_from(4.0)
    assert pact.clip.item() == pytest.approx(15 * gaussian_step(15) * 2)
    assert LsqActivation(4, ceiling=1.0).measure(X)[0] == pytest.approx(2.95)
    assert LsqActivation(4, signed=True).measure(X)[0] == pytest.approx(X.abs().sum().item())


@pytest.mark.parametrize("kind", [LsqActivation, PactActivation])
@pytest.mark.parametrize("value", [0.0, -3.0])
def test_what_is_learned_stays_usable(kind, value):
    quantizer = kind(4)
    parameter = next(iter(quantizer.parameters()))
    parameter.data.fill_(value)
    y, _, grad = run(quantizer)
    assert y.isfinite().all()
    assert grad.isfinite()
    assert grad.item() != 0  # it can come back


@pytest.mark.parametrize("derivative", DERIVATIVES)
@pytest.mark.parametrize("kind", KINDS)
def test_any_coarse_derivative(kind, derivative):
    plain, other = kind(3), kind(3, derivative)
    assert torch.equal(plain(X), other(X))
    assert all(g.isfinite().all() for g in run(other)[1:])


@pytest.mark.parametrize("kind", KINDS)
def test_float_phase_half_precision_and_nan(kind):
    quantizer = kind(4, ceiling=1.0)
    half = quantizer(X.bfloat16())
    assert half.dtype == torch.bfloat16
    assert quantizer(torch.tensor([[math.nan, 1.0]]))[0, 0].isnan()
    quantizer.enabled = False
    assert torch.equal(quantizer(X), X.clamp(0, 1))
    signed = kind(4, signed=True)
    signed.enabled = False
    assert signed(X) is X


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("derivative", DERIVATIVES)
def test_the_slope_of_the_rounding_is_for_x_and_the_clip_counts_what_it_holds(derivative, signed):
    quantizer = PactActivation(3, derivative, signed=signed, start=1.25)
    quantizer.set_progress(0.6)
    _, grad_x, grad_a = run(quantizer)
    low, n = (-1.25, 3) if signed else (0.0, 7)
    stairs = Stairs(low=-n if signed else 0, high=n, first=-n if signed else 0, shift=0.5)
    sharpness = torch.tensor(ESTIMATORS[derivative].sharpness(0.6))
    slope = coarse_slope(X * n / 1.25, derivative, stairs=stairs, sharpness=sharpness)
    above, below = X >= 1.25, low > X
    inside = ~(above | below)
    torch.testing.assert_close(grad_x, UP * slope * inside, rtol=1e-4, atol=1e-5)
    # also where the slope vanishes or turns at the end levels, as piecewise_quadratic's does
    assert grad_a.item() == (UP[above].sum() - (UP[below].sum() if signed else 0)).item()


@pytest.mark.parametrize("derivative", DERIVATIVES)
def test_lsq_learns_its_step_through_the_chosen_slope(derivative):
    quantizer = LsqActivation(3, derivative)
    quantizer.scale.data.fill_(0.3)
    quantizer.set_progress(0.6)
    points = X - 0.01
    y, grad_x, grad_s = run(quantizer, points)
    stairs = Stairs(low=0, high=7, first=0, shift=0.5)
    sharpness = torch.tensor(ESTIMATORS[derivative].sharpness(0.6))
    v = points / 0.3
    slope = coarse_slope(v, derivative, stairs=stairs, sharpness=sharpness) * ((v > 0) & (v < 7))
    torch.testing.assert_close(grad_x, UP * slope, rtol=1e-4, atol=1e-5)
    total = (UP * (y / 0.3 - slope * v)).sum() / math.sqrt(4 * 7)
    torch.testing.assert_close(grad_s, total, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bits", range(2, 9))
def test_signed_steps_start_from_their_own_number_of_codes(bits):
    start = LsqActivation(bits, signed=True).scale.item()
    assert start == pytest.approx(gaussian_step(2 ** (bits - 1) - 1))


@pytest.mark.parametrize("kind", KINDS)
def test_state_and_copies(kind):
    quantizer = kind(3, "power")
    quantizer.set_progress(0.4)
    for p in quantizer.parameters():
        p.data.mul_(0.7)
    twin = kind(3, "power")
    twin.load_state_dict(quantizer.state_dict())
    for other in (twin, copy.deepcopy(quantizer)):
        for one, same in zip(run(other), run(quantizer), strict=True):
            assert torch.equal(one, same)
        assert all(
            a is not b for a, b in zip(other.parameters(), quantizer.parameters(), strict=True)
        )


@pytest.mark.parametrize("kind", mostly_slow(KINDS, day=(0,)))
def test_compiled_is_eager(kind):
    torch._dynamo.reset()
    quantizer, twin = kind(3, "dsq", signed=True), kind(3, "dsq", signed=True)
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    for batch in (4, 6):  # the second one with another number of images
        x = torch.randn(batch, 3, 2, generator=torch.Generator().manual_seed(batch))
        upstream = torch.ones_like(x)
        for one, same in zip(run(quantizer, x, upstream), run(compiled, x, upstream), strict=True):
            torch.testing.assert_close(one, same, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("signed", [False, True])
def test_pact_at_the_ends_of_its_clip(signed):
    quantizer = PactActivation(2, signed=signed, start=1.25)
    below = torch.nextafter(torch.tensor(1.25), torch.tensor(0.0)).item()
    x = torch.tensor([[1.25, below, 0.0, -1.25]])
    _, grad_x, grad_a = run(quantizer, x, torch.tensor([[1.0, 2.0, 4.0, 8.0]]))
    # 0 <= x < a learns through x, x = a through the clip; signed: -a is the last that x owns
    assert grad_x.tolist() == [[0.0, 2.0, 4.0, 8.0 if signed else 0.0]]
    assert grad_a.item() == 1.0
