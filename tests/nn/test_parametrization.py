"""In-graph weight quantizers against their formulas, written again by hand."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrize

from qat import SpecError
from qat.functional.stairs import Stairs
from qat.functional.ste import DERIVATIVES, ESTIMATORS, coarse_slope, sign_slope
from qat.nn.binary_parametrization import METHODS
from qat.spec.quant import METHOD_BITS

CASES = [(name, bits) for name, all_bits in METHOD_BITS.items() for bits in all_bits]
GRANULARITIES = [
    (name, bits, granularity)
    for name, bits in CASES
    for granularity in ("tensor", "channel")
    if (name, granularity) != ("dorefa", "channel")
]


def weight(*shape, seed=0, size=0.05):
    return size * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def made(name, bits, w, granularity="tensor", **options):
    quantizer = METHODS[name](bits, granularity, **options)
    quantizer.start(w)
    return quantizer


def gradients(quantizer, w, upstream):
    w = w.clone().requires_grad_()
    wanted = [w, *quantizer.parameters()]
    return torch.autograd.grad((quantizer(w) * upstream).sum(), wanted)


@pytest.mark.parametrize(("name", "bits", "granularity"), GRANULARITIES)
def test_codes_levels_and_the_forward_pass_agree_bit_for_bit(name, bits, granularity):
    w = weight(6, 5, 3, 3, seed=bits)
    quantizer = made(name, bits, w, granularity)
    codes, scale = quantizer.encode(w)
    assert codes.dtype == torch.int8
    assert scale.dtype == torch.float32
    assert scale.shape == (() if granularity == "tensor" else (6, 1, 1, 1))
    q = quantizer(w).detach()
    assert torch.equal(quantizer.decode(codes, scale), q)
    assert quantizer.decode(codes, scale, dtype=torch.float64).dtype == torch.float64
    levels = torch.tensor(quantizer.levels)
    assert (levels.diff() > 0).all()
    assert len(levels) == (2**bits if name in ("lsq", "dorefa") else 2)
    distance = (q[..., None] / scale[..., None] - levels).abs().amin(dim=-1)
    assert distance.max() < 1e-4


@settings(deadline=None)
@given(st.sampled_from(CASES), st.lists(st.floats(-4, 4, width=32), min_size=1, max_size=12))
def test_any_weight_is_coded_exactly(case, values):
    w = torch.tensor(values)
    quantizer = made(*case, w)
    q = quantizer(w).detach()
    assert q.isfinite().all()
    assert torch.equal(quantizer.decode(*quantizer.encode(w)), q)


def test_lsq_values_and_gradients_in_each_region():
    quantizer = made("lsq", 3, torch.ones(1))  # codes -4 .. 3
    s = 0.5
    quantizer.scale.data.fill_(s)
    w = torch.tensor([-9.0, -2.1, -1.3, -0.2, 0.2, 1.2, 1.6, 9.0])
    upstream = torch.tensor([1.0, 2.0, -1.0, 3.0, 1.0, -2.0, 1.0, 2.0])
    v = [x / s for x in w.tolist()]
    codes = [min(max(round(x), -4), 3) for x in v]
    assert quantizer(w).tolist() == [s * c for c in codes]
    grad_w, grad_s = gradients(quantizer, w, upstream)
    inside = [-4 < x < 3 for x in v]
    assert grad_w.tolist() == [u * i for u, i in zip(upstream.tolist(), inside, strict=True)]
    slopes = [c - x if i else c for c, x, i in zip(codes, v, inside, strict=True)]
    total = sum(u * d for u, d in zip(upstream.tolist(), slopes, strict=True))
    assert grad_s.item() == pytest.approx(total / math.sqrt(8 * 3), rel=1e-5)


def test_lsq_starts_and_gradient_scale_per_group():
    w = weight(4, 10, seed=1)
    one, each = made("lsq", 4, w), made("lsq", 4, w, "channel")
    assert one.scale.item() == pytest.approx(2 * w.abs().mean().item() / math.sqrt(7))
    for o in range(4):
        row = made("lsq", 4, w[o])
        assert each.scale[o].item() == pytest.approx(row.scale.item())
        grad = gradients(each, w, torch.ones(4, 10))[1][o].item()
        assert grad == pytest.approx(gradients(row, w[o], torch.ones(10))[1].item(), rel=1e-4)


def test_lsq_scale_can_cross_zero_and_come_back():
    quantizer = made("lsq", 4, torch.ones(3))
    quantizer.scale.data.fill_(-0.1)
    w = torch.tensor([0.5, -0.5, 0.1])
    assert quantizer(w).isfinite().all()
    _, grad = gradients(quantizer, w, torch.tensor([-1.0, 1.0, 0.0]))
    assert grad.item() < 0  # descent raises the scale again


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_dorefa_values_and_gradients(bits):
    w = weight(5, 4, seed=2, size=1.0)
    quantizer = made("dorefa", bits, w)
    n = 2**bits - 1
    t = torch.tanh(w)
    r = t / (2 * t.abs().max()) + 0.5
    expected = 2 * torch.round(n * r) / n - 1
    torch.testing.assert_close(quantizer(w).detach(), expected, rtol=0, atol=1e-6)
    assert quantizer(w).abs().max().item() == pytest.approx(1)  # max|w| is an end point
    upstream = weight(5, 4, seed=3, size=1.0)
    smooth = w.double().requires_grad_()
    tanh = torch.tanh(smooth)
    (upstream * (tanh / tanh.abs().max())).sum().backward()
    (grad,) = gradients(quantizer, w, upstream)
    torch.testing.assert_close(grad.double(), smooth.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["dorefa", "reste"])
def test_one_bit_is_the_sign_times_the_mean(name):
    w = weight(4, 6, seed=4)
    assert torch.equal(made(name, 1, w)(w).sign(), torch.where(w < 0, -1.0, 1.0))
    torch.testing.assert_close(made(name, 1, w)(w).abs(), w.abs().mean().expand(4, 6))


def test_dorefa_one_bit_passes_the_gradient_through():
    w, upstream = weight(4, 6), weight(4, 6, seed=1)
    (grad,) = gradients(made("dorefa", 1, w), w, upstream)
    torch.testing.assert_close(grad, upstream)


def test_reste_slope_is_the_power_function_of_the_relative_weight():
    w = torch.tensor([0.0, 0.05, -0.3, 1.0, 1.4, -1.6, 2.65])
    w = 0.1 * w / w.abs().mean()  # mean 0.1: relative sizes are w / 0.1
    quantizer = made("reste", 1, w)
    quantizer.set_progress(1.0)  # o = 3
    expected = []
    for v in (w / w.abs().mean()).tolist():
        size = abs(v)
        slope = 0.1 ** (1 / 3) / 0.1 if size <= 0.1 else size ** (1 / 3 - 1) / 3
        expected.append(0.0 if size > 1.5 else slope)
    (grad,) = gradients(quantizer, w, torch.ones(7))
    assert grad.tolist() == pytest.approx(expected, rel=1e-4)
    quantizer.set_progress(0.0)  # o = 1: the clipped identity
    (grad,) = gradients(quantizer, w, torch.ones(7))
    torch.testing.assert_close(grad, (w.abs() <= 1.5 * w.abs().mean()).float())


def test_biper_is_periodic_and_its_gradient_is_the_cosine():
    w = weight(3, 7, seed=5)
    quantizer = made("biper", 1, w, "channel")
    period = 2 * math.pi / 20
    torch.testing.assert_close(quantizer(w + period), quantizer(w))
    assert torch.equal(quantizer(w + period / 2), -quantizer(w))
    grad_w, grad_s = gradients(quantizer, w, torch.ones(3, 7))
    scale = w.abs().mean(dim=1, keepdim=True)
    torch.testing.assert_close(quantizer.scale.detach(), scale)
    torch.testing.assert_close(grad_w, scale * 20 * torch.cos(20 * w), rtol=1e-4, atol=1e-5)
    signs = torch.where(torch.sin(20 * w) < 0, -1.0, 1.0)
    torch.testing.assert_close(grad_s, signs.sum(dim=1, keepdim=True) / math.sqrt(7))
    top = torch.full((3, 7), period / 4)
    assert gradients(quantizer, top, torch.ones(3, 7))[0].abs().max() < 1e-4


@pytest.mark.parametrize(("name", "bits"), [("dorefa", 3), ("dorefa", 1), ("reste", 1)])
def test_scale_equivariance_of_the_normalised_methods(name, bits):
    w = weight(4, 5, size=1e-3)  # small, where tanh is straight
    quantizer = made(name, bits, w)
    if bits == 1:
        torch.testing.assert_close(quantizer(2 * w), 2 * quantizer(w))
    else:
        torch.testing.assert_close(quantizer(2 * w), quantizer(w))


@pytest.mark.parametrize("derivative", DERIVATIVES)
@pytest.mark.parametrize(("name", "bits"), [("lsq", 4), ("dorefa", 1), ("reste", 1), ("biper", 1)])
def test_any_coarse_derivative(name, bits, derivative):
    w = weight(4, 5)
    quantizer = made(name, bits, w, derivative=derivative)
    plain = made(name, bits, w)
    assert torch.equal(quantizer(w), plain(w))  # backward only
    grads = gradients(quantizer, w, torch.ones(4, 5))
    assert all(g.isfinite().all() for g in grads)
    assert (quantizer.sharpness is not None) == (derivative in ("tanh", "power"))


@pytest.mark.parametrize(("name", "bits"), CASES)
def test_switched_off_it_is_the_weight_itself(name, bits):
    w = weight(4, 5)
    quantizer = made(name, bits, w)
    quantizer.enabled = False
    assert quantizer(w) is w


@pytest.mark.parametrize(("name", "bits"), CASES)
def test_zeros(name, bits):
    w = torch.zeros(3, 4)
    quantizer = made(name, bits, w)
    assert torch.equal(quantizer.decode(*quantizer.encode(w)), quantizer(w))
    assert all(g.isfinite().all() for g in gradients(quantizer, w, torch.ones(3, 4)))


@pytest.mark.parametrize(
    ("name", "bits", "granularity", "message"),
    [
        ("lsq", 1, "tensor", "lsq needs bits in 2, 3, .*; got 1"),
        ("reste", 2, "tensor", "reste needs bits in 1; got 2"),
        ("dorefa", 9, "tensor", "dorefa needs bits"),
        ("dorefa", 2, "channel", "granularity of dorefa must be tensor, got 'channel'"),
        ("lsq", 2, "row", "granularity of lsq must be tensor or channel, got 'row'"),
    ],
)
def test_refusals(name, bits, granularity, message):
    with pytest.raises(SpecError, match=message):
        METHODS[name](bits, granularity)


def test_an_unknown_derivative_and_an_empty_weight_are_refused():
    with pytest.raises(SpecError, match=r"derivative must be one of .*; got 'tahn'"):
        METHODS["lsq"](4, derivative="tahn")
    with pytest.raises(SpecError, match="empty"):
        METHODS["lsq"](4).start(torch.empty(0, 3))


@pytest.mark.parametrize(("name", "bits"), [("lsq", 2), ("dorefa", 2), ("reste", 1), ("biper", 1)])
def test_a_parametrized_layer_learns(name, bits):
    torch.manual_seed(0)
    layer = nn.Conv2d(2, 4, 3)
    quantizer = made(name, bits, layer.weight.detach(), "tensor")
    parametrize.register_parametrization(layer, "weight", quantizer)
    x, target = torch.randn(16, 2, 5, 5), torch.randn(16, 4, 3, 3)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.05)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = (layer(x) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert min(losses[-5:]) < losses[0]
    assert len(layer.weight.unique()) <= len(quantizer.levels)


@pytest.mark.parametrize("progress", [0.0, 0.6])
@pytest.mark.parametrize("derivative", DERIVATIVES)
def test_the_chosen_slope_is_the_one_in_the_gradient(derivative, progress):
    w, upstream = weight(4, 5, seed=6), weight(4, 5, seed=7)
    sharpness = torch.tensor(ESTIMATORS[derivative].sharpness(progress))

    def gradient(name, bits):
        quantizer = made(name, bits, w, derivative=derivative)
        quantizer.set_progress(progress)
        return quantizer, gradients(quantizer, w, upstream)

    relative = sign_slope(w / w.abs().mean(), derivative, sharpness=sharpness)
    for name in ("dorefa", "reste"):
        torch.testing.assert_close(gradient(name, 1)[1][0], upstream * relative)
    quantizer, (grad, _) = gradient("biper", 1)
    wave = sign_slope(torch.sin(20 * w), derivative, sharpness=sharpness)
    expected = upstream * wave * quantizer.scale.detach() * 20 * torch.cos(20 * w)
    torch.testing.assert_close(grad, expected, rtol=1e-4, atol=1e-6)

    stairs = Stairs(low=-4, high=3, first=-4, shift=0.5)
    quantizer, (grad, grad_s) = gradient("lsq", 3)
    s = quantizer.scale.detach()
    v, codes = (w / s).clamp(-4, 3), quantizer.encode(w)[0]
    slope = coarse_slope(v, derivative, stairs=stairs, sharpness=sharpness)
    slope = slope * ((w / s > -4) & (w / s < 3))
    torch.testing.assert_close(grad, upstream * slope)
    by_scale = (upstream * (codes - slope * v)).sum() / math.sqrt(20 * 3)
    torch.testing.assert_close(grad_s, by_scale, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("derivative", DERIVATIVES)
def test_dorefa_puts_the_slope_between_the_rounding_and_the_tanh(derivative):
    w, upstream = weight(4, 5, seed=8, size=1.0), weight(4, 5, seed=9, size=1.0)
    (grad,) = gradients(made("dorefa", 2, w, derivative=derivative), w, upstream)
    w = w.clone().requires_grad_()
    t = torch.tanh(w)
    normal = t / t.abs().max()  # Q = 2 round(3 r) / 3 - 1 with r = normal / 2 + 1 / 2
    z = (3 * (normal / 2 + 0.5)).detach()
    slope = coarse_slope(z, derivative, stairs=Stairs(low=0, high=3, first=0, shift=0.5))
    expected = torch.autograd.grad((normal * slope * upstream).sum(), w)[0]
    torch.testing.assert_close(grad, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "bits", "granularity"), GRANULARITIES)
def test_codes_and_scale_stay_as_they_were_taken(name, bits, granularity):
    w = weight(6, 5)
    quantizer = made(name, bits, w, granularity)
    codes, scale = quantizer.encode(w)
    before = quantizer.decode(codes, scale)
    for p in quantizer.parameters():
        p.data.mul_(2)
    assert not scale.requires_grad
    assert torch.equal(quantizer.decode(codes, scale), before)


@pytest.mark.parametrize(("name", "bits", "granularity"), GRANULARITIES)
def test_state_and_copies_hold_all_that_is_learned(name, bits, granularity):
    w = weight(6, 5, seed=3)
    quantizer = made(name, bits, w, granularity, derivative="power")
    quantizer.set_progress(0.4)
    for p in quantizer.parameters():
        p.data.mul_(1.5)
    twin = made(name, bits, torch.ones(6, 5), granularity, derivative="power")
    twin.load_state_dict(quantizer.state_dict())
    for other in (twin, copy.deepcopy(quantizer)):
        assert all(
            a is not b for a, b in zip(other.parameters(), quantizer.parameters(), strict=True)
        )
        for one, same in zip(gradients(other, w, w), gradients(quantizer, w, w), strict=True):
            assert torch.equal(one, same)
        assert torch.equal(other(w), quantizer(w))


@pytest.mark.parametrize("factor", [0.25, 8.0])
@pytest.mark.parametrize(("bits", "granularity"), [(2, "tensor"), (4, "channel")])
def test_lsq_and_its_start_scale_with_the_weight(bits, granularity, factor):
    w = weight(4, 6)
    quantizer = made("lsq", bits, w, granularity)
    scaled = made("lsq", bits, factor * w, granularity)  # a power of two: exact
    assert torch.equal(scaled.scale, factor * quantizer.scale)
    assert torch.equal(scaled(factor * w), factor * quantizer(w))


@pytest.mark.parametrize(("name", "bits"), CASES)
def test_half_precision_weights_are_quantized_in_float32(name, bits):
    w = weight(4, 5).bfloat16()
    quantizer = made(name, bits, w)
    assert torch.equal(quantizer(w), quantizer(w.float()).bfloat16())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(quantizer(w.float()), quantizer.decode(*quantizer.encode(w)))


@pytest.mark.parametrize(("name", "bits"), CASES)
def test_a_weight_without_elements_or_without_channels_cannot_start(name, bits):
    with pytest.raises(SpecError, match=r"shape \(0, 3\) is empty; leave it float"):
        METHODS[name](bits).start(torch.empty(0, 3))
    if name != "dorefa":
        with pytest.raises(SpecError, match="no output channels; use granularity=tensor"):
            METHODS[name](bits, "channel").start(torch.tensor(0.5))
