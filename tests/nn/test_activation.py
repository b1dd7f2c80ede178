"""ActivationQuantizer: what it replaces, where it starts, what it refuses."""

import copy
import pickle

import pytest
import torch
from torch import nn

from qat.errors import SpecError
from qat.functional.ste import DERIVATIVES, ESTIMATORS, coarse_slope
from qat.nn.activation import ActivationQuantizer, QuantizedActivation

# optimal steps of nearest rounding on a half-normal, computed elsewhere
STARTS = {1: 1.224006, 2: 0.650770, 3: 0.353411, 4: 0.193249}


@pytest.mark.parametrize("bits", STARTS)
def test_start_for_relu_and_signed_inputs(bits):
    assert ActivationQuantizer(bits).step.item() == pytest.approx(STARTS[bits], abs=6e-7)
    signed = ActivationQuantizer(bits + 1, signed=True)  # codes -M .. M with the same M
    assert signed.step.item() == pytest.approx(STARTS[bits], abs=6e-7)


@pytest.mark.parametrize("bits", range(1, 9))
def test_levels(bits):
    quantizer = ActivationQuantizer(bits)
    y = quantizer(torch.linspace(-5, 300 * quantizer.step.item(), 20001))
    alpha = quantizer.step.detach()
    assert torch.equal(y.unique(), torch.arange(2**bits) * alpha)


@pytest.mark.parametrize("bits", range(2, 9))
def test_signed_levels_are_symmetric(bits):
    quantizer = ActivationQuantizer(bits, signed=True)
    y = quantizer(torch.linspace(-9, 9, 20001))
    top = 2 ** (bits - 1) - 1
    assert torch.equal(y.unique(), torch.arange(-top, top + 1) * quantizer.step.detach())


@pytest.mark.parametrize("bits", [1, 4])
def test_disabled_is_the_float_activation(bits):
    x = torch.randn(50)
    relu, identity = ActivationQuantizer(bits), ActivationQuantizer(bits + 1, signed=True)
    relu.enabled = identity.enabled = False
    assert torch.equal(relu(x), nn.ReLU()(x))
    assert torch.equal(identity(x), x)


def test_start_step_scales_with_the_deviation_and_stays_inside_the_clamp():
    quantizer = ActivationQuantizer(4)
    quantizer.start_step(2.5)
    assert quantizer.step.item() == pytest.approx(2.5 * STARTS[4], abs=2e-6)
    quantizer.start_step(1e-9)
    assert quantizer.step.item() == pytest.approx(1e-3)
    quantizer.start_step(1e9)
    assert quantizer.step.item() == 5.0
    assert quantizer.step.requires_grad


def test_learned_and_frozen_steps():
    x = torch.randn(9)
    learned, frozen = ActivationQuantizer(2), ActivationQuantizer(2, learned=False)
    learned(x).sum().backward()
    assert learned.step.grad.shape == ()
    assert not frozen(x).requires_grad
    assert list(frozen.state_dict()) == ["step"]  # frozen steps travel with checkpoints too


@pytest.mark.parametrize("derivative", ["identity", "relu", "clipped_relu"])
@pytest.mark.parametrize("step_derivative", ["exact", "three_valued", "two_valued"])
def test_options_reach_the_staircase(derivative, step_derivative):
    quantizer = ActivationQuantizer(2, derivative, step_derivative=step_derivative)
    with torch.no_grad():
        quantizer.step.fill_(0.5)
    x = torch.tensor([-1.0, 0.3, 9.0], requires_grad=True)
    quantizer(x).sum().backward()
    slopes = {"identity": [1, 1, 1], "relu": [0, 1, 1], "clipped_relu": [0, 1, 0]}
    assert x.grad.tolist() == slopes[derivative]
    middle = {"exact": 1, "three_valued": 2, "two_valued": 0}[step_derivative]
    assert quantizer.step.grad.item() == middle + 3
    assert derivative in repr(quantizer)
    assert step_derivative in repr(quantizer)


@pytest.mark.parametrize(("bits", "signed"), [(0, False), (9, False), (32, False), (1, True)])
def test_impossible_bits(bits, signed):
    with pytest.raises(SpecError, match=f"got {bits}"):
        ActivationQuantizer(bits, signed=signed)


def test_copies_and_pickles():
    quantizer = ActivationQuantizer(3, "relu", signed=True)
    x = torch.randn(20)
    for twin in (copy.deepcopy(quantizer), pickle.loads(pickle.dumps(quantizer))):
        assert torch.equal(twin(x), quantizer(x))
        assert twin.step is not quantizer.step


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("name", DERIVATIVES)
def test_every_member_with_its_schedule(name, signed):
    quantizer = ActivationQuantizer(3, name, signed=signed)
    x = torch.linspace(-3, 3, 61, requires_grad=True)
    z = x.detach() / quantizer.step.detach()
    grads = []
    for progress in (0.0, 0.3, 1.0):
        quantizer.set_progress(progress)
        sharpness = torch.tensor(ESTIMATORS[name].sharpness(progress))
        (grad,) = torch.autograd.grad(quantizer(x).sum(), x)
        assert torch.equal(
            grad, coarse_slope(z, name, stairs=quantizer.stairs, sharpness=sharpness)
        )
        grads.append(grad)
    assert torch.equal(grads[0], grads[2]) == (name not in ("tanh", "power"))
    assert name in repr(quantizer)


@pytest.mark.parametrize("name", DERIVATIVES)
def test_the_schedule_travels_with_the_state(name):
    quantizer = ActivationQuantizer(3, name)
    scheduled = name in ("tanh", "power")
    assert set(quantizer.state_dict()) == {"step"} | ({"sharpness"} if scheduled else set())
    start = quantizer.sharpness
    quantizer.set_progress(0.6)
    assert quantizer.sharpness is start  # in place: a compiled network reads this very buffer
    twins = [copy.deepcopy(quantizer), pickle.loads(pickle.dumps(quantizer))]
    twins.append(ActivationQuantizer(3, name))
    twins[2].load_state_dict(quantizer.state_dict())
    for twin in twins:
        assert (twin.sharpness is None) == (not scheduled)
        if scheduled:
            assert twin.sharpness is not quantizer.sharpness
            assert torch.equal(twin.sharpness, quantizer.sharpness)
            assert not twin.sharpness.requires_grad


def test_a_ceiling_holds_while_disabled_only():
    quantizer = ActivationQuantizer(2, ceiling=0.5)
    x = torch.tensor([-1.0, 0.3, 4.0])
    assert quantizer(x).max() > 1
    quantizer.enabled = False
    assert torch.equal(quantizer(x), torch.tensor([0.0, 0.3, 0.5]))


def test_measure_is_the_sum_of_squares_of_what_the_levels_cover():
    x = torch.tensor([[-3.0, 0.0], [1.0, 2.0]])
    assert ActivationQuantizer(2).measure(x) == (5.0, 2)
    assert ActivationQuantizer(2, signed=True).measure(x) == (14.0, 4)
    quantizer = ActivationQuantizer(4)
    quantizer.start_from(6.25)
    assert quantizer.step.item() == pytest.approx(2.5 * STARTS[4], abs=2e-6)


def test_the_base_quantizes_nothing():
    with pytest.raises(TypeError, match="must define quantize"):
        QuantizedActivation(2)(torch.zeros(1))
