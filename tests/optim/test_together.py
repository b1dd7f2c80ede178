"""What a step does with all weights together: dispatches, lent memory, equal bits."""

import copy
from collections import Counter

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from qat.nn.weight import WeightQuantizer
from qat.optim.quant_optimizer import QuantOptimizer
from qat.optim.rule import UpdateRule, bcgd, binary_connect, binary_relax

RULES = {
    "bcgd": bcgd(0.3),
    "projected_gradient": bcgd(1.0),
    "binary_connect": binary_connect(),
    "relax": binary_relax(1.0, 1.5, hard_from=3),
    "both": UpdateRule(blend=lambda t: 0.2, relax=lambda t: 0.6),
}
GRIDS = [WeightQuantizer(1), WeightQuantizer(2), WeightQuantizer(4, "channel")]


class Foreign(torch.optim.SGD):
    """An optimizer that is not torch's own: nothing is lent to it."""


class OneByOne:
    """A projection that can only be called."""

    def __init__(self, quantizer):
        self.quantizer = quantizer

    def __call__(self, w):
        return self.quantizer(w)


def network(layers=4):
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Conv2d(4, 4, 3, padding=1) for _ in range(layers)))


def optimizer_of(net, projection, rule, base=torch.optim.SGD, **options):
    weights = {m.weight: projection for m in net}
    return QuantOptimizer(base(net.parameters(), lr=0.1, **options), weights, rule)


def train(net, optimizer, steps=4):
    make = torch.Generator().manual_seed(1)
    for _ in range(steps):
        optimizer.zero_grad()
        net(torch.randn(2, 4, 5, 5, generator=make)).square().mean().backward()
        optimizer.step()
    return [p.detach().clone() for p in net.parameters()] + [w for w, _ in optimizer.latent_pairs()]


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("quantizer", GRIDS, ids=lambda q: q.kind)
def test_lent_copied_together_and_one_by_one_are_the_same_bits(rule, quantizer):
    runs = []
    for base in (torch.optim.SGD, Foreign):
        for projection in (quantizer, OneByOne(quantizer)):
            net = network()
            runs.append(train(net, optimizer_of(net, projection, rule, base, momentum=0.9)))
    for other in runs[1:]:
        for a, b in zip(runs[0], other, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("how", [{"foreach": False}, {"foreach": True}, {"fused": True}])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_every_implementation_of_a_base_moves_the_latent_weights(how, kind):
    class Copied(kind):
        pass

    both = []
    for base in (kind, Copied):
        net = network()
        both.append(train(net, optimizer_of(net, WeightQuantizer(1), bcgd(0.1), base, **how)))
    for a, b in zip(*both, strict=True):
        assert torch.equal(a, b)


def test_parameters_have_their_own_memory_outside_of_the_base_step():
    net = network()
    optimizer = optimizer_of(net, WeightQuantizer(1), bcgd(0.3))
    own = {m.weight.data_ptr() for m in net}
    latent = {w.data_ptr() for w, _ in optimizer.latent_pairs()}
    inside = []
    optimizer._base.register_step_pre_hook(
        lambda *_: inside.extend(m.weight.data_ptr() for m in net)
    )
    train(net, optimizer, steps=1)
    assert set(inside) == latent
    assert {m.weight.data_ptr() for m in net} == own
    optimizer._base.step = lambda: 1 / 0
    with pytest.raises(ZeroDivisionError):
        train(net, optimizer, steps=1)
    assert {m.weight.data_ptr() for m in net} == own
    assert all(len(m.weight.abs().unique()) == 1 for m in net)


def test_parameters_that_changed_their_layout_are_copied():
    """Latent weights keep the strides of the start; elements stay where they belong."""
    both = []
    for late in (False, True):
        net = network()
        optimizer = optimizer_of(net, WeightQuantizer(1), bcgd(0.1), momentum=0.9)
        if late:
            net.to(memory_format=torch.channels_last)
        both.append(train(net, optimizer))
    for a, b in zip(*both, strict=True):
        torch.testing.assert_close(a, b)


def test_a_backward_through_changed_weights_is_still_refused():
    net = network(1)
    optimizer = optimizer_of(net, WeightQuantizer(1), bcgd(0.1))
    loss = net(torch.randn(1, 4, 5, 5, requires_grad=True)).square().sum()
    loss.backward(retain_graph=True)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


class Dispatches(TorchDispatchMode):
    """Counts operators, views and numbers aside."""

    def __init__(self):
        super().__init__()
        self.seen = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not func.is_view:
            self.seen[func.__name__] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("rule", [bcgd(0.1), binary_relax(1.0, 1.5, hard_from=9)])
@pytest.mark.parametrize("quantizer", GRIDS, ids=lambda q: q.kind)
def test_operators_of_a_step_do_not_grow_with_the_number_of_weights(rule, quantizer):
    counts = []
    for layers in (2, 30):
        net = network(layers)
        optimizer = optimizer_of(net, quantizer, rule, foreach=True)
        train(net, optimizer, steps=1)
        with Dispatches() as counted:
            optimizer.step()
        counts.append(sum(counted.seen.values()))
    assert counts[1] == counts[0]
    assert counts[0] < 120


def test_a_deep_copied_network_is_independent():
    net = network()
    optimizer = optimizer_of(net, WeightQuantizer(1), bcgd(0.3))
    train(net, optimizer)
    twin = copy.deepcopy(net)
    before = [p.detach().clone() for p in twin.parameters()]
    train(net, optimizer)
    for p, kept in zip(twin.parameters(), before, strict=True):
        assert torch.equal(p, kept)
