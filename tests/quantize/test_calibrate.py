"""Starts of alpha against moments computed by numpy."""

import numpy as np
import pytest
import torch
from torch import nn

from qat.quantize.activations import activation_quantizers
from qat.quantize.batchnorm import reestimated_batchnorm
from qat.quantize.calibrate import start_steps
from qat.quantize.prepare import enable_quantizers, prepare
from qat.spec.quant import ActivationSpec, Override, QuantSpec

BATCHES = torch.randn(3, 8, 1, 6, 6, generator=torch.Generator().manual_seed(0))
TABLE4, TABLE_SIGNED4 = 0.193249, 0.353411


def network(spec):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(),
        nn.Linear(64, 8), nn.GELU(), nn.Linear(8, 3),
    )  # fmt: skip
    return prepare(net, spec, example=BATCHES[0])


def measured():
    return QuantSpec(activation=ActivationSpec(step_start="batches"))


def float_activations(net):
    """Inputs of the two quantizers in numpy, BatchNorm by each batch's own statistics."""
    before_relu, before_last = [], []
    for images in BATCHES:
        x = nn.functional.conv2d(images, net[0].weight.detach()).double().numpy()
        mean, variance = (f(x, axis=(0, 2, 3), keepdims=True) for f in (np.mean, np.var))
        x = (x - mean) / np.sqrt(variance + 1e-5)
        before_relu.append(x.ravel())
        flat = torch.tensor(np.maximum(x, 0).reshape(8, -1)).float()
        y = nn.functional.gelu(net[4](flat)).detach().double().numpy()
        before_last.append(y.ravel())
    return np.concatenate(before_relu), np.concatenate(before_last)


def test_starts_are_the_deviation_times_the_table():
    net = network(measured())
    assert set(activation_quantizers(net)) == {"2", "6.input_quantizer"}
    relu_input, last_input = float_activations(net)
    assert start_steps(net, measured(), BATCHES) == ["2", "6.input_quantizer"]
    positive = relu_input[relu_input > 0]
    expected = TABLE4 * np.sqrt((positive**2).mean())
    assert net[2].step.item() == pytest.approx(expected, rel=1e-5)
    expected = TABLE_SIGNED4 * np.sqrt((last_input**2).mean())
    assert net[6].input_quantizer.step.item() == pytest.approx(expected, rel=1e-5)


def test_the_table_start_stays_for_relus_and_signed_ones_are_always_measured():
    net = network(QuantSpec())
    assert start_steps(net, QuantSpec(), BATCHES) == ["6.input_quantizer"]
    assert net[2].step.item() == pytest.approx(TABLE4, abs=1e-6)
    assert net[6].input_quantizer.step.item() != pytest.approx(TABLE_SIGNED4, abs=1e-3)


def test_an_override_chooses_who_is_measured():
    spec = QuantSpec(overrides=(Override(match="2", activation={"step_start": "batches"}),))
    assert start_steps(network(spec), spec, BATCHES) == ["2", "6.input_quantizer"]


def test_nothing_but_the_steps_changes():
    net = network(measured())
    net[1].eval()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    enable_quantizers(net, False)
    start_steps(net, measured(), BATCHES)
    changed = {k for k, v in net.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {"2.step", "6.input_quantizer.step"}
    assert net.training
    assert not net[1].training
    assert all(q.enabled for q in activation_quantizers(net).values())
    assert not any(q._forward_pre_hooks for q in activation_quantizers(net).values())
    assert all(p.grad is None for p in net.parameters())


def test_dead_inputs_keep_their_start():
    spec = measured()
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    prepare(net, spec, example=torch.zeros(2, 4))
    with torch.no_grad():
        net[0].weight.zero_()
        net[0].bias.fill_(-1)
    assert start_steps(net, spec, [torch.randn(5, 4)]) == ["1"]
    assert net[1].step.item() == pytest.approx(TABLE4, abs=1e-6)


def test_no_batches_are_needed_where_nothing_is_measured():
    spec = QuantSpec()
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    prepare(net, spec, example=torch.zeros(2, 4))

    def never():
        raise AssertionError
        yield

    assert start_steps(net, spec, never()) == []


def test_reestimated_statistics_are_the_plain_average():
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Dropout(0.5))
    net[1].momentum = 0.3
    net[2].eval()
    net(BATCHES[0])
    before = {k: v.clone() for k, v in net.state_dict().items()}
    outputs = [net[0](images).detach().double().numpy() for images in BATCHES]
    with reestimated_batchnorm(net, BATCHES):
        mean = np.mean([y.mean(axis=(0, 2, 3)) for y in outputs], axis=0)
        variance = np.mean([y.var(axis=(0, 2, 3), ddof=1) for y in outputs], axis=0)
        np.testing.assert_allclose(net[1].running_mean.numpy(), mean, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(net[1].running_var.numpy(), variance, rtol=1e-4)
        assert net.training
        assert not net[2].training
    assert net[1].momentum == 0.3
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    with pytest.raises(KeyError), reestimated_batchnorm(net, BATCHES):
        raise KeyError
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_a_failing_batch_leaves_the_statistics():
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3))
    net(BATCHES[0])
    before = {k: v.clone() for k, v in net.state_dict().items()}
    wrong = torch.zeros(2, 7, 6, 6)
    with pytest.raises(RuntimeError), reestimated_batchnorm(net, [BATCHES[0], wrong]):
        pass
    assert net[1].momentum == 0.1
    assert net.training
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
