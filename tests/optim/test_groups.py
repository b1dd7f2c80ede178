"""Parameter groups: who lands where, with which rate, decay and clip."""

import pytest
import torch
from torch import nn

from qat.nn.activation import ActivationQuantizer
from qat.optim.groups import parameter_groups
from qat.optim.quant_optimizer import QuantOptimizer
from qat.optim.rule import binary_connect

OPTIONS = {"lr": 0.5, "weight_decay": 1e-3, "step_rate": 0.01}


def network():
    return nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), ActivationQuantizer(4), nn.Flatten(),
        nn.Linear(8, 3),
    )  # fmt: skip


def by_name(groups):
    return {g["group"]: g for g in groups}


def names(group):
    return [name for name, _ in group["params"]]


def test_members_rates_and_decay():
    groups = by_name(parameter_groups(network().named_parameters(), **OPTIONS))
    assert names(groups["step"]) == ["2.step"]
    assert names(groups["vector"]) == ["0.bias", "1.weight", "1.bias", "4.bias"]
    assert names(groups["weight"]) == ["0.weight", "4.weight"]
    assert groups["step"]["lr"] == pytest.approx(0.005)
    assert groups["step"]["grad_clip"] == pytest.approx(100)
    assert "grad_clip" not in groups["weight"]
    assert [g["weight_decay"] for g in groups.values()] == [1e-3] * 3


def test_decay_of_weights_only():
    groups = by_name(parameter_groups(network().named_parameters(), **OPTIONS, decay="weights"))
    assert groups["step"]["weight_decay"] == groups["vector"]["weight_decay"] == 0
    assert groups["weight"]["weight_decay"] == 1e-3


def test_frozen_parameters_and_empty_groups_are_left_out():
    net = network()
    net[2].step.requires_grad_(False)
    net[4].weight.requires_grad_(False)
    groups = by_name(parameter_groups(net.named_parameters(), **OPTIONS | {"step_rate": 0.0}))
    assert list(groups) == ["vector", "weight"]
    assert names(groups["weight"]) == ["0.weight"]
    options = OPTIONS | {"step_rate": 0.0, "projected": [net[4].weight]}
    groups = by_name(parameter_groups(net.named_parameters(), **options))
    assert names(groups["weight"]) == ["0.weight", "4.weight"]


def test_every_parameter_once_and_torch_takes_the_groups():
    net = network()
    optimizer = torch.optim.AdamW(parameter_groups(net.named_parameters(), **OPTIONS))
    given = [p for g in optimizer.param_groups for p in g["params"]]
    assert {id(p) for p in given} == {id(p) for p in net.parameters()}
    assert len(given) == len(list(net.parameters()))
    assert optimizer.param_groups[0]["param_names"] == ["2.step"]


@pytest.mark.parametrize("size", [0.3, -0.3, 99.0, 101.0, -5000.0])
def test_alpha_moves_as_in_the_authors_code(size):
    """alpha -= lr * clip(rate * sum of gradients, -1, 1), the sum over accumulated batches."""
    net = network()
    groups = parameter_groups(net.named_parameters(), **OPTIONS | {"weight_decay": 0.0})
    optimizer = QuantOptimizer(torch.optim.SGD(groups, lr=0.5), {}, binary_connect())
    before = net[2].step.item()
    for _ in range(2):  # two halves of one batch
        (net[2].step * (size / 2)).backward()
    optimizer.step()
    expected = before - 0.5 * min(max(0.01 * size, -1), 1)
    assert net[2].step.item() == pytest.approx(expected, abs=1e-6)
