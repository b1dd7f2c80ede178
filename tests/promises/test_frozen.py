"""Frozen layers: projected once, the same bits until the end, also over a resume."""

from functools import partial

import lightning as L
import pytest
import torch
from torch import nn

from qat import (
    QuantOptimizer,
    QuantSpec,
    audit,
    bcgd,
    parameter_groups,
    prepare,
    weight_projections,
)
from qat.train.weights import network_state, restore
from support.digits_run import fit, module, network

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*LeafSpec")

BATCH = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
SPEC = QuantSpec()


def by_groups(net):
    named = net.named_parameters()
    return parameter_groups(named, lr=0.1, weight_decay=1e-2, step_rate=0.01)


# how people freeze layers, and what they give to the optimizer
FROZEN = {
    "layer": lambda net: net[0].requires_grad_(False),
    "several": lambda net: [net[i].requires_grad_(False) for i in (0, 1, 4)],
    "all but the head": lambda net: [m.requires_grad_(False) for m in net[:8]],
    "weight": lambda net: net[8].weight.requires_grad_(False),
}
GIVEN = {
    "groups": by_groups,
    "learning": lambda net: [p for p in net.parameters() if p.requires_grad],
    "learning-named": lambda net: [(n, p) for n, p in net.named_parameters() if p.requires_grad],
    "all": lambda net: net.parameters(),
    "all-named": lambda net: net.named_parameters(),
}


def made(freeze, given):
    net = prepare(network(), SPEC, example=BATCH)
    FROZEN[freeze](net)
    base = torch.optim.SGD(GIVEN[given](net), lr=0.1, momentum=0.9, weight_decay=1e-2)
    return net, QuantOptimizer(base, weight_projections(net, SPEC), bcgd())


def train(net, optimizer, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        net(BATCH).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("given", GIVEN)
@pytest.mark.parametrize("freeze", FROZEN)
def test_frozen_weights_have_their_hard_values_and_keep_them(freeze, given):
    net, optimizer = made(freeze, given)
    floats = dict(network().named_parameters())
    hard = weight_projections(net, SPEC)
    train(net, optimizer, 3)
    for name, weight in net.named_parameters():
        if weight not in hard:
            continue
        is_frozen = torch.equal(weight, hard[weight](floats[name].detach()))
        assert is_frozen == (not weight.requires_grad), name
    audit(net.eval(), SPEC, BATCH)
    # loaded into another, whose weights have been others
    other, again = made(freeze, given)
    with torch.no_grad():
        other[0].weight.mul_(-1)
    again.sync_latent()
    again.load_state_dict(optimizer.state_dict())
    for weight, twin in zip(hard, weight_projections(other, SPEC), strict=True):
        assert torch.equal(weight, twin)


def test_unfrozen_weights_go_on_from_where_they_were():
    net, optimizer = made("layer", "groups")
    train(net, optimizer, 1)
    net[0].requires_grad_(True)
    train(net, optimizer, 3)
    assert not torch.equal(
        optimizer.latent_weights_by_parameter()[net[0].weight], network()[0].weight
    )


class Saving(L.Callback):
    def __init__(self, path):
        self.path = path

    def on_train_epoch_end(self, trainer, _):
        if trainer.current_epoch == 1:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("rule", ["bcgd", "binary_relax"])
def test_frozen_layers_under_a_trainer(tmp_path, rule):
    def frozen():
        lit = module(rule, warm=1, base=partial(torch.optim.SGD, lr=0.05, weight_decay=1e-4))
        lit.net[0].requires_grad_(False)
        return lit

    whole, path = frozen(), tmp_path / "a.ckpt"
    fit(whole, Saving(path), epochs=3)
    weight = network()[0].weight.detach()
    hard = torch.where(weight >= 0, 1.0, -1.0) * weight.abs().mean()
    assert torch.equal(whole.net[0].weight, hard)
    resumed = frozen()
    nn.init.zeros_(resumed.net[0].weight)
    fit(resumed, epochs=3, ckpt_path=path)
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key
    content = torch.load(path, weights_only=True)
    assert torch.equal(network_state(content)["0.weight"], weight)
    restore(resumed.net, resumed.spec, content)
    assert torch.equal(resumed.net[0].weight, hard)
