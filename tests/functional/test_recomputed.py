"""In-graph weights recomputed in backward: the same bits, and nothing kept but the weight."""

import pytest
import torch
from torch.nn import functional as F
from torch.nn.utils import parametrize

from qat import set_runtime
from qat.functional.coded import Coded
from qat.functional.recomputed import recomputed
from qat.nn.binary_parametrization import METHODS
from qat.spec.quant import METHOD_BITS

CASES = [(kind, bits) for kind in METHODS if kind != "lsq" for bits in METHOD_BITS[kind]]


def weight():
    return torch.randn(6, 8, 3, 3, generator=torch.Generator().manual_seed(0))


def made(kind, bits, granularity="tensor"):
    module = METHODS[kind](bits, granularity)
    module.start(weight())
    return module


def gradients(forward, module):
    w = weight().requires_grad_()
    x = torch.randn(2, 8, 6, 6, generator=torch.Generator().manual_seed(1))
    result = F.conv2d(x, forward(w))
    leaves = [w, *module.parameters()]
    (first,) = torch.autograd.grad(result.square().sum(), w, retain_graph=True)
    return result, *torch.autograd.grad(result.square().sum(), leaves), first


@pytest.mark.parametrize(("kind", "bits"), CASES)
def test_bits_are_those_of_the_formula(kind, bits):
    module = made(kind, bits)
    found = gradients(module, module)
    plain = gradients(lambda w: module._product(w, *module.parameters())[0], module)
    assert all(torch.equal(a, b) for a, b in zip(found, plain, strict=True))


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize(("kind", "bits"), CASES)
def test_the_weight_alone_is_kept(kind, bits, granularity):
    module = made(kind, bits, granularity if kind != "dorefa" else "tensor")
    kept = []

    def pack(t):
        kept.append(t)
        return t

    w = weight().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = module(w)
    of_the_weight = [t for t in kept if t.numel() == w.numel()]
    assert {t.data_ptr() for t in of_the_weight} == {w.data_ptr()}
    assert y.requires_grad


@pytest.mark.parametrize(("kind", "bits"), CASES)
def test_layers_keep_the_codes(kind, bits):
    """What a convolution keeps of the weight is a byte for each, with the same floats in it."""
    module = made(kind, bits)
    kept = []
    w = weight().requires_grad_()
    x = torch.randn(2, 8, 6, 6, requires_grad=True)
    with set_runtime(saved="codes"):
        y = module(w)
        assert isinstance(y, Coded)
        assert torch.equal(y.levels.values(y.code, y.dtype), y.detach().as_subclass(torch.Tensor))
        hooks = torch.autograd.graph.saved_tensors_hooks(
            lambda t: (kept.append(t), t)[1], lambda t: t
        )
        with hooks:
            F.conv2d(x, y)
    assert [t.dtype for t in kept if t.shape == w.shape] == [torch.uint8]


def test_second_derivatives():
    module = made("dorefa", 4)
    found = []
    for forward in (module, lambda w: module._product(w)[0]):
        w = weight().requires_grad_()
        (first,) = torch.autograd.grad(forward(w).pow(3).sum(), w, create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), w)[0])
    torch.testing.assert_close(*found)  # terms are added up in another order


def test_a_learned_number_that_changes_before_backward_is_noticed():
    scale = torch.ones((), requires_grad=True)
    w = weight().requires_grad_()
    (y,) = recomputed(lambda w, scale: (w * scale,), w, scale)
    with torch.no_grad():
        scale.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("again", [False, True])
def test_hooks_are_called_once(again):
    module = made("biper", 1)
    found = []
    for forward in (module, lambda w: module._product(w, *module.parameters())[0]):
        w = weight().requires_grad_()
        calls = []
        hook = lambda g, c=calls: c.append(g.sum().item())  # noqa: E731
        handles = [t.register_hook(hook) for t in (w, module.scale)]
        y = forward(w)
        torch.autograd.grad(y.sum(), (w, module.scale), create_graph=again)
        found.append(calls)
        for handle in handles:
            handle.remove()
    assert sorted(found[0]) == sorted(found[1])  # whose comes first is the graph's own


def test_other_parameters_by_functional_call():
    """Backward is with the parameters that forward had, not with the module's own."""
    layer = torch.nn.Linear(8, 4, bias=False)
    module = METHODS["biper"](1)
    module.start(layer.weight)
    parametrize.register_parametrization(layer, "weight", module)
    x, grads = torch.randn(3, 8), []
    names = "parametrizations.weight.original", "parametrizations.weight.0.scale"
    for factor in (1.0, 2.0):
        own = {n: p.detach() * factor for n, p in layer.named_parameters()}
        leaves = [own[name].requires_grad_() for name in names]
        result = torch.func.functional_call(layer, own, (x,)).sum()
        grads.append(torch.autograd.grad(result, leaves))
        w, scale = (leaf.detach().requires_grad_() for leaf in leaves)
        plain = F.linear(x, module._product(w, scale)[0])
        torch.testing.assert_close(grads[-1], torch.autograd.grad(plain.sum(), [w, scale]))
    assert not torch.equal(grads[0][0], grads[1][0])
