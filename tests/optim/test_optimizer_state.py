"""state_dict and load_state_dict: what is stored, under which names, and what is refused."""

import copy

import pytest
import torch
from torch import nn

from qat.errors import CheckpointError
from qat.nn.weight import WeightQuantizer
from qat.optim.quant_optimizer import QuantOptimizer
from qat.optim.rule import bcgd, binary_relax

BINARY = WeightQuantizer(1)


def make(*, named=True, base=torch.optim.SGD, seed=0, sizes=(4, 3, 2), **options):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(*sizes[:2]), nn.Tanh(), nn.Linear(*sizes[1:]))
    parameters = net.named_parameters() if named else net.parameters()
    inner = base(parameters, **{"lr": 0.1, **options})
    projections = {net[0].weight: BINARY, net[2].weight: BINARY}
    return net, QuantOptimizer(inner, projections, binary_relax(1.0, 1.5, hard_from=50))


def step(net, optimizer, seed=0):
    optimizer.zero_grad()
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(seed))
    net(x).square().mean().backward()
    optimizer.step()


def test_contents():
    net, optimizer = make(momentum=0.9)
    step(net, optimizer)
    state = optimizer.state_dict()
    assert state["qat"]["version"] == 1
    assert state["qat"]["step"] == 1
    assert list(state["qat"]["latent"]) == ["0.weight", "2.weight"]
    base = optimizer._base.state_dict()
    assert set(state) == {*base, "qat"}
    assert state["param_groups"] == base["param_groups"]


def test_without_names_positions_are_the_keys():
    net, optimizer = make(named=False)
    assert list(optimizer.state_dict()["qat"]["latent"]) == [0, 2]
    step(net, optimizer)
    other_net, other = make(named=False, seed=7)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert torch.equal(other_net[0].weight, net[0].weight)


def test_the_weights_in_the_model_do_not_matter_for_loading():
    net, optimizer = make(momentum=0.9)
    for seed in range(3):
        step(net, optimizer, seed)
    saved = copy.deepcopy(optimizer.state_dict())
    other_net, other = make(momentum=0.9, seed=5)
    other.load_state_dict(saved)
    assert other.completed_steps == 3
    for a, b in zip((net[0], net[2]), (other_net[0], other_net[2]), strict=True):
        assert torch.equal(a.weight, b.weight)
    for (a, _), (b, _) in zip(optimizer.latent_pairs(), other.latent_pairs(), strict=True):
        assert torch.equal(a, b)
        assert a.data_ptr() != b.data_ptr()


def refused(state, match, **options):
    net, optimizer = make(seed=3, **options)
    step(net, optimizer)
    before = copy.deepcopy({"net": net.state_dict(), "optimizer": optimizer.state_dict()})
    with pytest.raises(CheckpointError, match=match):
        optimizer.load_state_dict(state)
    # a refused state leaves no trace
    for key, value in before["net"].items():
        assert torch.equal(value, net.state_dict()[key])
    after = optimizer.state_dict()
    assert after["qat"]["step"] == before["optimizer"]["qat"]["step"]
    for key, value in before["optimizer"]["qat"]["latent"].items():
        assert torch.equal(value, after["qat"]["latent"][key])
    assert str(after["state"]) == str(before["optimizer"]["state"])


def test_a_plain_optimizers_state_is_refused():
    net, _ = make()
    refused(torch.optim.SGD(net.parameters(), lr=0.1).state_dict(), "no 'qat' part")


def test_another_version_is_refused():
    _, optimizer = make()
    state = copy.deepcopy(optimizer.state_dict())
    state["qat"]["version"] = 99
    refused(state, "version 99")


def test_other_parameters_are_refused_by_name():
    _, optimizer = make()
    state = copy.deepcopy(optimizer.state_dict())
    state["qat"]["latent"]["new.weight"] = state["qat"]["latent"].pop("2.weight")
    refused(state, r"missing \['2.weight'\], unexpected \['new.weight'\]")


@pytest.mark.parametrize("shape", [(5, 3), (1, 1), ()])
def test_other_shapes_are_refused_and_never_broadcast(shape):
    _, optimizer = make()
    state = copy.deepcopy(optimizer.state_dict())
    state["qat"]["latent"]["2.weight"] = torch.zeros(shape)
    refused(state, "2.weight")


def test_other_groups_are_refused():
    _, optimizer = make()
    state = copy.deepcopy(optimizer.state_dict())
    state["param_groups"].append(copy.deepcopy(state["param_groups"][0]))
    refused(state, "group")


@pytest.mark.parametrize("part", ["version", "step", "latent"])
def test_an_incomplete_part_is_refused(part):
    _, optimizer = make()
    state = copy.deepcopy(optimizer.state_dict())
    del state["qat"][part]
    refused(state, part)


def test_the_given_state_is_left_alone():
    net, optimizer = make(momentum=0.9)
    step(net, optimizer)
    state = copy.deepcopy(optimizer.state_dict())
    kept = copy.deepcopy(state)
    other_net, other = make(momentum=0.9, seed=2)
    other.load_state_dict(state)
    step(other_net, other)
    assert set(state) == set(kept)
    for key, value in kept["qat"]["latent"].items():
        assert torch.equal(state["qat"]["latent"][key], value)


def test_loading_keeps_the_present_rule():
    net, optimizer = make()
    step(net, optimizer)
    torch.manual_seed(1)
    other_net = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    projections = {other_net[0].weight: BINARY, other_net[2].weight: BINARY}
    base = torch.optim.SGD(other_net.named_parameters(), lr=0.1)
    other = QuantOptimizer(base, projections, bcgd())
    other.load_state_dict(optimizer.state_dict())
    assert torch.equal(other_net[0].weight, BINARY(optimizer.latent_pairs()[0][0]))
