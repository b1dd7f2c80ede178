"""A whole step on another device: no tensor left behind, no wait for it, no sum without an order.

What CUDA itself computes is tested in `tests/gpu`; this runs by day, without a GPU.
"""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.functional import adaptive_avg_pool2d

from qat.lit.classifier import LitClassifier
from qat.lit.pairing import distiller
from qat.optim.groups import parameter_groups
from qat.quantize.prepare import prepare
from qat.spec.distill import DistillSpec
from qat.spec.quant import QuantSpec
from qat.spec.run import SchedulerSpec, TrainingSpec
from qat.spec.schema import declared
from support.elsewhere import AWAY, AnyOrderError, MixedDevicesError, elsewhere, reading, tensors
from support.options import CLASSES, SECOND, SHAPE, distillations, network, quantizations

EXAMPLE = torch.zeros(2, *SHAPE)


def module(spec, distill=None):
    """A Lightning module on the CPU, as a run builds it."""
    net = prepare(network(), spec, example=EXAMPLE)
    options = {
        "optimizer": partial(torch.optim.SGD, lr=0.1, momentum=0.9),
        "scheduler": SchedulerSpec(),
        "training": TrainingSpec(),
        "classes": CLASSES,
        "ema_decay": 0.9,
    }
    if distill is None:
        return LitClassifier(net, spec, class_weights=torch.ones(CLASSES), **options)
    run = SimpleNamespace(distill=distill, seed=0)
    return distiller(net, spec, run, network(), "here", example=EXAMPLE, **options)


def optimizer_of(lit, base=partial(torch.optim.SGD, momentum=0.9)):  # noqa: B008
    groups = parameter_groups(
        lit.learned_parameters(), lr=0.1, weight_decay=1e-4, step_rate=lit.spec.activation.step_rate
    )
    (optimizer,) = lit.phases.wrap([base(groups)], [4], [0])
    return optimizer


def step(lit, base=None):
    """The switch to the quantized phase, a step, and an evaluation; the optimizer."""
    images, labels = torch.empty(6, *SHAPE, device=AWAY), torch.empty(6, device=AWAY).long()
    optimizer = optimizer_of(lit, *([base] if base else []))
    with reading(1.0):  # at the switch steps are measured, and become numbers
        lit.phases.advance(lambda: [images])
    lit.objective((images, labels))["loss"].backward()
    optimizer.step()
    with torch.no_grad(), lit.phases.judged_weights():
        lit.net(images)
    return optimizer


@pytest.mark.parametrize("label", quantizations())
def test_a_step_of_every_option_stays_on_its_device(label):
    lit = module(quantizations()[label])
    with elsewhere():
        assert devices(lit.to(AWAY), step(lit)) == {AWAY}


def devices(lit, optimizer):
    """Where everything lies that a step has read or written."""
    held = [*lit.parameters(), *lit.buffers(), *(p.grad for p in lit.parameters())]
    states = [optimizer.state_dict(), lit.phases.state_dict()]
    return {tensor.device for tensor in (*tensors(states), *held) if tensor is not None}


@pytest.mark.parametrize("label", distillations())
def test_every_distillation_stays_on_its_device(label):
    features, logits = distillations()[label]
    distill = DistillSpec(labels=True, features=features, logits=logits, layers=("0", SECOND))
    lit = module(QuantSpec(), distill)
    with elsewhere():
        lit._taps.enter_context(lit._tap)
        assert devices(lit.to(AWAY), step(lit)) == {AWAY}


@pytest.mark.parametrize("base", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize(
    "options", [{}, {"foreach": True}, {"differentiable": False, "foreach": False}], ids=str
)
def test_every_form_of_a_base_optimizer_stays_on_its_device(base, options):
    lit = module(QuantSpec())
    with elsewhere():
        found = devices(lit.to(AWAY), step(lit, partial(base, **options)))
    # torch counts Adam's steps on the CPU where nothing has to read them elsewhere
    assert found - {torch.device("cpu")} == {AWAY}


def test_every_choice_of_every_option_is_among_them():
    specs = list(quantizations().values())
    given = {
        group: [values for s in specs for o in s.overrides if (values := getattr(o, group))]
        for group in ("weight", "activation")
    }
    for option in declared(QuantSpec):
        if not option.choices:
            continue
        group, _, name = option.key.rpartition(".")
        met = {getattr(getattr(s, group) if group else s, name) for s in specs}
        met |= {values[name] for values in given.get(group, ())}
        assert set(option.choices) <= met, option.key


class Forgetful(nn.Module):
    """An activation that keeps a tensor by itself, which no `.to(device)` moves."""

    def __init__(self, spoil):
        super().__init__()
        self.left, self.spoil = torch.ones(4, 1, 1), spoil

    def forward(self, x):
        return self.spoil(x, self.left)


@pytest.mark.parametrize(
    ("spoil", "error", "words"),
    [
        (lambda x, left: x * left, MixedDevicesError, "cpu, meta"),  # made before the move
        (lambda x, left: x * torch.ones(4, 1, 1), MixedDevicesError, "cpu, meta"),
        (lambda x, left: x * x.detach().sum().item(), RuntimeError, "meta tensors"),
        (lambda x, left: x if (x > 0).any() else -x, RuntimeError, "meta tensors"),
        (lambda x, left: x * x.detach().cpu().to(AWAY), NotImplementedError, "out of meta"),
        (lambda x, left: x + adaptive_avg_pool2d(x, 2).sum(), AnyOrderError, "deterministic"),
    ],
    ids=["kept", "made", "read", "asked", "fetched", "unordered"],
)
def test_what_is_left_behind_is_found(spoil, error, words):
    lit = module(QuantSpec())
    lit.net[1] = nn.Sequential(lit.net[1], Forgetful(spoil))
    with elsewhere(), pytest.raises(error, match=words):
        step(lit.to(AWAY))
