"""Activation checkpointing: every estimator and method gives the gradients it gives without."""

import pytest
import timm
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from qat import ActivationSpec, QuantSpec, RuleSpec, WeightSpec, prepare, set_runtime, start_steps
from qat.functional.affinity.feature_affinity import feature_affinity
from qat.functional.ste import DERIVATIVES
from qat.names import StepDerivative
from qat.quantize.prepare import set_progress
from qat.spec.quant import METHOD_BITS

BATCH = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
ACTIVATIONS = {
    **{f"staircase {name}": ActivationSpec(derivative=name) for name in DERIVATIVES},
    **{
        f"sign {name}": ActivationSpec(kind="sign", bits=1, derivative=name) for name in DERIVATIVES
    },
    **{
        f"step {name} {bits}": ActivationSpec(step_derivative=name, bits=bits)
        for name in StepDerivative.__args__
        for bits in (4, 8)
    },
    **{kind: ActivationSpec(kind=kind) for kind in ("lsq", "pact", "dorefa")},
    "shift": ActivationSpec(kind="sign", bits=1, shift="channel"),
}
SPECS = {
    **{name: QuantSpec(activation=options) for name, options in ACTIVATIONS.items()},
    **{
        f"weight {method} {bits[0]}": QuantSpec(
            rule=RuleSpec(name="float_only"), weight=WeightSpec(method=method, bits=bits[0])
        )
        for method, bits in METHOD_BITS.items()
    },
    **{
        f"weight {name}": QuantSpec(
            rule=RuleSpec(name="float_only"),
            weight=WeightSpec(method="lsq", bits=3, derivative=name),
        )
        for name in DERIVATIVES
    },
}


def prepared(spec):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3),
        nn.GELU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5),
    )  # fmt: skip
    prepare(net, spec, example=BATCH)
    start_steps(net, spec, [BATCH])
    set_progress(net, 0.3)
    return net


def gradients(net, run):
    image = BATCH.clone().requires_grad_()
    net.zero_grad()
    run(image).square().sum().backward()
    return [image.grad, *(p.grad for p in net.parameters())]


def are_equal(found, wanted):
    return all(
        (a is None) == (b is None) and (a is None or torch.equal(a, b))
        for a, b in zip(found, wanted, strict=True)
    )


@pytest.mark.parametrize("integers", ["off", "auto", "on"])
@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("name", SPECS)
def test_gradients_are_those_without_checkpointing(name, use_reentrant, integers):
    """A block is computed without gradients first, and with them again: by the same sums."""
    set_runtime(integer_forward=integers)  # until the test's end
    net = prepared(SPECS[name])
    wanted = gradients(net, net)
    assert any(float(g.abs().max()) > 0 for g in wanted if g is not None)
    found = gradients(net, lambda x: checkpoint(net, x, use_reentrant=use_reentrant))
    assert are_equal(found, wanted)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_affinity_loss_inside_a_checkpoint(use_reentrant):
    net, teacher = prepared(QuantSpec())[:5], torch.rand(4, 7, 6, 6)

    def loss(x):
        return feature_affinity(net(x), teacher)

    wanted = gradients(net, loss)
    assert are_equal(
        gradients(net, lambda x: checkpoint(loss, x, use_reentrant=use_reentrant)), wanted
    )


@pytest.mark.parametrize("name", ["resnet10t", "vit_tiny_patch16_224"])
def test_timm_networks_checkpoint_their_stages(name):
    size = {"img_size": 32} if "vit" in name else {}
    torch.manual_seed(0)
    net = timm.create_model(name, num_classes=5, **size)
    image = torch.randn(2, 3, 32, 32)
    prepare(net, QuantSpec(), example=image)

    def found():
        net.zero_grad()
        net(image).square().sum().backward()
        return [p.grad.clone() for p in net.parameters()]

    wanted = found()
    net.set_grad_checkpointing()
    assert are_equal(found(), wanted)
