"""QuantOptimizer step by step: order of operations, views, contexts, refusals."""

import copy
import math
import pickle

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from qat.errors import QatError
from qat.nn.weight import WeightQuantizer
from qat.optim.quant_optimizer import QuantOptimizer
from qat.optim.rule import UpdateRule, bcgd, binary_connect, binary_relax

BINARY = WeightQuantizer(1)


def make(rule=None, *, base=torch.optim.SGD, lr=0.1, **options):
    torch.manual_seed(0)
    net = nn.Linear(4, 3)
    inner = base(net.named_parameters(), lr=lr, **options)
    return net, QuantOptimizer(inner, {net.weight: BINARY}, rule or binary_connect())


def backward(net, seed=0):
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(seed))
    loss = net(x).square().mean()
    loss.backward()
    return loss


def latent(optimizer):
    return optimizer.latent_pairs()[0][0].clone()


def test_construction_quantizes_the_first_forward():
    torch.manual_seed(0)
    float_weight = nn.Linear(4, 3).weight.detach().clone()
    net, optimizer = make()
    assert torch.equal(latent(optimizer), float_weight)
    assert torch.equal(net.weight, float_weight.sign() * float_weight.abs().mean())
    assert optimizer.completed_steps == 0


def test_schedules_get_the_number_of_completed_steps():
    seen = {"rho": [], "theta": []}

    def recording(name, value):
        return lambda t: seen[name].append(t) or value

    rule = UpdateRule(blend=recording("rho", 0.1), relax=recording("theta", 0.5))
    net, optimizer = make(rule)
    for _ in range(3):
        backward(net)
        optimizer.step()
    assert seen["rho"] == [0, 1, 2]
    assert seen["theta"] == [0, 1, 2, 3]


def test_the_closure_runs_first_with_gradients_at_the_forward_weights():
    net, optimizer = make(bcgd(0.3))
    forward, order = net.weight.detach().clone(), []
    optimizer._base.register_step_pre_hook(lambda *_: order.append("base"))

    def closure():
        order.append("closure")
        assert torch.is_grad_enabled()
        assert torch.equal(net.weight, forward)
        optimizer.zero_grad()
        return backward(net)

    with torch.no_grad():  # as some trainers call it
        loss = optimizer.step(closure)
    assert order == ["closure", "base"]
    assert loss.requires_grad
    assert not torch.equal(net.weight, forward)


def test_a_failing_closure_changes_nothing():
    net, optimizer = make()
    before, weights = net.weight.detach().clone(), latent(optimizer)

    def closure():
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        optimizer.step(closure)
    assert torch.equal(net.weight, before)
    assert torch.equal(latent(optimizer), weights)
    assert optimizer.completed_steps == 0


def test_a_failing_base_step_leaves_the_forward_weights(monkeypatch):
    def fail():
        raise ArithmeticError

    net, optimizer = make()
    forward = net.weight.detach().clone()
    assert not torch.equal(forward, latent(optimizer))
    backward(net)
    monkeypatch.setattr(optimizer._base, "step", fail)
    with pytest.raises(ArithmeticError):
        optimizer.step()
    assert torch.equal(net.weight, forward)


@pytest.mark.parametrize("rho", [0.0, 0.3])
@pytest.mark.parametrize("base", [torch.optim.SGD, torch.optim.AdamW])
def test_without_gradient_the_latent_stays_and_forward_comes_from_it(base, rho):
    rule = UpdateRule(blend=lambda t: rho, relax=binary_relax(1.0, 3.0, hard_from=4).relax)
    net, optimizer = make(rule, base=base, weight_decay=0.1)
    start = latent(optimizer)
    for step in range(5):
        assert net.weight.grad is None
        lam = 3.0**step
        theta = 1.0 if step >= 4 else lam / (1 + lam)
        expected = (1 - theta) * start + theta * BINARY(start)
        torch.testing.assert_close(net.weight.detach(), expected)
        net.bias.sum().backward()
        optimizer.step()
        assert torch.equal(latent(optimizer), start)
        optimizer.zero_grad()


def test_a_zero_gradient_is_a_gradient():
    net, optimizer = make(weight_decay=0.5)
    start = latent(optimizer)
    net.weight.grad = torch.zeros_like(net.weight)
    optimizer.step()
    torch.testing.assert_close(latent(optimizer), start * (1 - 0.1 * 0.5))


@pytest.mark.parametrize("theta", [0.0, 0.4, 1.0])
def test_parameters_are_written_in_place(theta):
    rule = UpdateRule(blend=lambda t: 0.2, relax=lambda t: theta)
    net, optimizer = make(rule)
    parameter, address = net.weight, net.weight.data_ptr()
    for _ in range(2):
        backward(net)
        optimizer.step()
        with optimizer.hard_weights():
            pass
    assert net.weight is parameter
    assert net.weight.data_ptr() == address


def test_one_projection_per_step():
    calls = []

    def projection(w):
        calls.append(1)
        return BINARY(w)

    net = nn.Linear(4, 3)
    optimizer = QuantOptimizer(
        torch.optim.SGD(net.parameters(), lr=0.1), {net.weight: projection}, bcgd()
    )
    for _ in range(3):
        for _ in range(2):  # accumulation: more forwards than steps
            backward(net)
        optimizer.step()
    assert len(calls) == 1 + 3


def test_a_step_never_waits_for_the_device():
    class Items(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.count += func is torch.ops.aten._local_scalar_dense.default
            return func(*args, **(kwargs or {}))

    for rule in (bcgd(0.3), binary_relax(hard_from=9)):
        net, optimizer = make(rule, momentum=0.9)
        backward(net)
        with Items() as items:
            optimizer.step()
        assert items.count == 0


@pytest.mark.parametrize("rho", [1e-5, 1e-4, 0.3, 0.7, 0.99999])
def test_the_blend_is_rho_and_not_a_rounding_of_it(rho):
    torch.manual_seed(0)
    w = nn.Parameter(torch.randn(100_000) * 0.1)
    optimizer = QuantOptimizer(torch.optim.SGD([w], lr=0.0), {w: BINARY}, bcgd(rho))
    start = latent(optimizer).double()
    gap = w.detach().double() - start
    w.grad = torch.zeros_like(w)
    optimizer.step()
    moved = latent(optimizer).double() - start
    assert float(moved @ gap / (gap @ gap)) == pytest.approx(rho, rel=1e-4)


@pytest.mark.parametrize("copy_of", [copy.deepcopy, copy.copy, pickle.dumps])
def test_copies_are_refused_with_the_cure(copy_of):
    _, optimizer = make()
    with pytest.raises(TypeError, match="state_dict"):
        copy_of(optimizer)


def test_a_base_that_does_not_know_the_parameter_is_refused():
    net = nn.Linear(4, 3)
    with pytest.raises(QatError, match=r"\(3, 4\).*no parameter group"):
        QuantOptimizer(torch.optim.SGD([net.bias], lr=1), {net.weight: BINARY}, bcgd())


class Closed(torch.optim.SGD):
    """One that asks for the loss, as LBFGS does."""

    def step(self, closure):
        return closure()


@pytest.mark.parametrize("base", [torch.optim.LBFGS, Closed])
def test_a_base_that_needs_a_closure_is_refused(base):
    net = nn.Linear(4, 3)
    with pytest.raises(QatError, match=rf"^{base.__name__}\.step needs a closure, .*; use SGD"):
        QuantOptimizer(base(net.parameters(), lr=1), {net.weight: BINARY}, bcgd())


def _takes_no_closure(name):
    kind = getattr(torch.optim, name)
    is_one = isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)
    return is_one and name not in ("Optimizer", "LBFGS", "SparseAdam", "Muon")


@pytest.mark.parametrize("name", list(filter(_takes_no_closure, dir(torch.optim))))
def test_every_other_optimizer_of_torch_steps(name):
    net = nn.Linear(4, 3)
    base = getattr(torch.optim, name)(net.parameters(), lr=0.1)
    optimizer = QuantOptimizer(base, {net.weight: BINARY}, bcgd())
    backward(net)
    optimizer.step()
    assert len(net.weight.unique()) == 2


def test_non_finite_weights_stay_visible():
    net, optimizer = make()
    net.weight.grad = torch.full_like(net.weight, math.nan)
    optimizer.step()
    assert not net.weight.isfinite().any()
