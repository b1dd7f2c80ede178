"""load_weights: float and quantized weights into a prepared network, all or nothing."""

import pytest
import torch
from torch import nn

from qat.errors import CheckpointError
from qat.quantize.prepare import load_weights, prepare
from qat.spec.quant import QuantSpec


def convnet():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
    )  # fmt: skip


def test_float_weights_load_into_a_prepared_network():
    source, net = convnet(), prepare(convnet(), QuantSpec())
    with torch.no_grad():
        source[0].weight.fill_(0.25)
        net[2].step.fill_(0.7)
    assert load_weights(net, source.state_dict()) == ["2.step", "4.step"]
    assert torch.equal(net[0].weight, source[0].weight)
    assert net[2].step.item() == pytest.approx(0.7)


def test_quantized_weights_load_with_their_steps():
    net = prepare(convnet(), QuantSpec())
    state = {k: v + 1 for k, v in net.state_dict().items()}
    assert load_weights(net, state) == []
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())


def test_some_steps_missing_is_an_error():
    net = prepare(convnet(), QuantSpec())
    state = {k: v for k, v in net.state_dict().items() if k != "4.step"}
    with pytest.raises(CheckpointError, match=r"1 of 2 .*4\.step"):
        load_weights(net, state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("0.weight"), "missing 0.weight"),
        (lambda s: s.update(extra=torch.ones(1)), "unexpected extra"),
        (lambda s: s.update({"7.bias": torch.ones(4)}), r"7.bias has shape \(4,\).*\(3,\)"),
        (lambda s: s.update({"2.step": torch.ones(1)}), "2.step has shape"),
    ],
)
def test_other_weights_are_refused_and_leave_no_trace(change, message):
    net = prepare(convnet(), QuantSpec())
    before = {k: v.clone() for k, v in net.state_dict().items()}
    state = {k: v + 1 for k, v in before.items()}
    change(state)
    with pytest.raises(CheckpointError, match=message):
        load_weights(net, state)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
