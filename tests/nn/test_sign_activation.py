"""SignActivation: levels, the learned shift, what it replaces, what it stores."""

import copy

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from qat.errors import SpecError
from qat.functional.ste import DERIVATIVES, ESTIMATORS, sign_slope
from qat.nn.activation import ActivationQuantizer
from qat.nn.sign_activation import SignActivation

SCHEDULED = ["tanh", "power"]
SHAPES = {"flat": (6, 3), "sequence": (4, 3, 5), "image": (4, 3, 5, 2)}


def shifted(name="piecewise_quadratic"):
    module = SignActivation(name, channels=3)
    with torch.no_grad():
        module.shift.copy_(torch.tensor([0.5, -0.25, 0.0]))
    return module


def channels_last(x):
    """(everything else, C)."""
    return x.movedim(1, -1).reshape(-1, x.shape[1])


def test_levels_and_both_zeros_and_nan():
    x = torch.tensor([0.0, -0.0, 3.0, -3.0, 1e-30, -1e-30])
    assert SignActivation()(x).tolist() == [1, 1, 1, -1, 1, -1]
    assert SignActivation()(torch.tensor([1.0, torch.nan]))[1].isnan()
    poisoned = shifted()
    with torch.no_grad():
        poisoned.shift[1] = torch.nan
    assert poisoned(torch.zeros(2, 3)).isnan().tolist() == [[False, True, False]] * 2


@pytest.mark.parametrize("name", DERIVATIVES)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_shift_moves_each_channel_and_learns_the_input_gradient_summed(shape, name):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(shape, generator=generator).requires_grad_()
    upstream = torch.randint(-4, 5, shape, generator=generator).float()
    module = shifted(name)
    y = module(x)
    y.backward(upstream)
    moved = channels_last(x.detach()) + torch.tensor([0.5, -0.25, 0.0])
    assert torch.equal(channels_last(y.detach()), torch.where(moved >= 0, 1.0, -1.0))
    rows = channels_last(upstream) * sign_slope(moved, name)
    assert torch.equal(channels_last(x.grad), rows)
    torch.testing.assert_close(module.shift.grad, rows.sum(0))
    torch.testing.assert_close(module.shift.grad, channels_last(x.grad).sum(0))


def test_no_shift_until_asked_for_and_none_at_the_start():
    x = torch.randn(4, 3, 2)
    assert SignActivation().shift is None
    fresh = SignActivation(channels=3)
    assert fresh.shift.tolist() == [0, 0, 0]
    assert torch.equal(fresh(x), SignActivation()(x))
    with pytest.raises(SpecError, match=r"3 channels got inputs of shape .4, 5, 2."):
        fresh(torch.randn(4, 5, 2))


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("channels", [None, 3])
def test_disabled_is_what_it_replaced(channels, signed):
    x = torch.randn(6, 3)
    module = SignActivation(channels=channels, signed=signed)
    module.enabled = False
    assert torch.equal(module(x), x if signed else nn.ReLU()(x))
    capped = SignActivation(channels=channels, ceiling=0.5)
    capped.enabled = False
    assert torch.equal(capped(x), x.clamp(0, 0.5))


@pytest.mark.parametrize("channels", [None, 3])
@pytest.mark.parametrize("name", DERIVATIVES)
def test_state_holds_the_shift_and_a_scheduled_sharpness_only(name, channels):
    module = SignActivation(name, channels=channels)
    keys = {"shift"} if channels else set()
    assert set(module.state_dict()) == keys | ({"sharpness"} if name in SCHEDULED else set())
    assert set(dict(module.named_parameters())) == keys
    module.set_progress(0.7)
    twin = SignActivation(name, channels=channels)
    twin.load_state_dict(module.state_dict())
    if name in SCHEDULED:
        assert twin.sharpness.item() == pytest.approx(ESTIMATORS[name].sharpness(0.7))
        assert twin.sharpness.shape == ()
    else:
        assert module.sharpness is None
    assert copy.deepcopy(module).shift is None or copy.deepcopy(module).shift is not module.shift
    assert name in repr(module)
    assert ("3 channels" in repr(module)) == (channels == 3)


@pytest.mark.parametrize("name", DERIVATIVES)
def test_progress_reaches_the_gradient(name):
    x = torch.linspace(-1.2, 1.2, 25, requires_grad=True)
    module = SignActivation(name)
    slopes = []
    for progress in (0.0, 0.4, 1.0):
        module.set_progress(progress)
        (grad,) = torch.autograd.grad(module(x).sum(), x)
        sharpness = torch.tensor(ESTIMATORS[name].sharpness(progress))
        assert torch.equal(grad, sign_slope(x.detach(), name, sharpness=sharpness))
        slopes.append(grad)
    assert torch.equal(slopes[0], slopes[2]) == (name not in SCHEDULED)


def test_bits_and_what_others_ask_of_an_activation():
    module = SignActivation(signed=True)
    assert module.bits == 1
    assert not module.has_zero
    assert ActivationQuantizer.has_zero
    assert not module.needs_batches
    with pytest.raises(SpecError, match="got 1"):
        ActivationQuantizer(1, signed=True)  # the sign alone has one bit with negative levels


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_widths(dtype):
    x = torch.randn(6, 3, 2).to(dtype).requires_grad_()
    module = shifted()
    y = module(x)
    y.backward(torch.ones_like(y))
    assert y.dtype == x.grad.dtype == dtype
    assert module.shift.grad.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert shifted()(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["tanh", "clipped_relu"])
def test_compiles_once_with_shift_and_schedule(name):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    module, twin = shifted(name), shifted(name)
    compiled = torch.compile(module, fullgraph=True, backend=counter)
    for progress in (0.0, 0.5, 1.0):
        module.set_progress(progress)
        twin.set_progress(progress)
        x = torch.randn(4, 3, 5, 5)
        y, expected = compiled(x), twin(x)
        y.square().sum().backward()
        expected.square().sum().backward()
        assert torch.equal(y, expected)
        torch.testing.assert_close(module.shift.grad, twin.shift.grad, rtol=1e-6, atol=1e-6)
    assert counter.frame_count == 1
