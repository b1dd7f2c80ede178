"""ActivationQuantizer: what it replaces, where it starts, what it refuses."""

import copy
import pickle

import pytest
import torch
from torch import nn

from qat.errors import SpecError
from qat.nn.activation import ActivationQuantizer

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
