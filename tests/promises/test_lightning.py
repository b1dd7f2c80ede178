"""The promises under a real Lightning Trainer: phases, forward weights, refusals."""

from functools import partial

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging
from torch import nn

from qat.errors import QatError
from qat.quantize.activations import activation_quantizers
from qat.spec.run import SchedulerSpec
from support.digits_run import BATCHES, fit, module

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*LeafSpec")


class Watch:
    """Looks at every binary weight in every forward pass of training."""

    def __init__(self, lit, *, quantized=lambda lit: True):
        self.lit, self.quantized, self.forwards = lit, quantized, 0
        for layer in lit.net.modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                layer.register_forward_pre_hook(self.look)

    def look(self, layer, _):
        if not (layer.training and torch.is_grad_enabled()):
            return
        self.forwards += 1
        values = layer.weight.unique()
        if self.quantized(self.lit):
            assert len(values) == 2
            assert values[0] == -values[1] < 0
        else:
            assert len(values) > 40


BASES = {
    "sgd": partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=1e-4),
    "adamw": partial(torch.optim.AdamW, lr=0.01, weight_decay=1e-2),
}


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("rule", ["bcgd", "binary_connect"])
def test_every_training_forward_sees_two_values(rule, base):
    lit = module(rule, base=BASES[base])
    watch = Watch(lit)
    trainer, _ = fit(lit, accumulate_grad_batches=2)
    assert watch.forwards == 2 * BATCHES * 3
    assert trainer.global_step == lit.quant_optimizer.completed_steps == BATCHES


def test_relaxed_phase_is_float_and_hard_phase_binary():
    lit = module("binary_relax", hard_from=0.5)
    watch = Watch(lit, quantized=lambda lit: lit.quant_optimizer.completed_steps >= BATCHES)
    fit(lit)
    assert watch.forwards == 2 * BATCHES * 3


class Phases(L.Callback):
    """Notes what the network is, at the start of each batch and in validation."""

    def __init__(self):
        self.rows, self.validation = [], []

    def on_before_zero_grad(self, trainer, lit, optimizer):
        quantizers = activation_quantizers(lit.net).values()
        enabled = {q.enabled for q in quantizers}
        rate = optimizer.param_groups[-1]["lr"]
        self.rows.append((lit.is_quantized, enabled, len(optimizer.state), rate))

    def on_validation_batch_start(self, trainer, lit, *_):
        values = len(lit.net[8].weight.unique())
        self.validation.append((lit.is_quantized, values == 2, lit.is_selectable))


def test_float_warm_start_then_a_fresh_quantized_phase():
    lit, phases = module(warm=1, scheduler=SchedulerSpec(name="cosine")), Phases()
    watch = Watch(lit, quantized=lambda lit: lit.is_quantized)
    starts = [q.step.item() for q in activation_quantizers(lit.net).values()]
    fit(lit, phases, num_sanity_val_steps=0)
    assert watch.forwards == 2 * BATCHES * 3
    assert lit.warm_steps == BATCHES
    assert [row[0] for row in phases.rows] == [False] * BATCHES + [True] * BATCHES
    assert [row[1] for row in phases.rows] == [{False}] * BATCHES + [{True}] * BATCHES
    # momentum is forgotten, and the rate begins anew
    assert phases.rows[BATCHES - 1][2] > 0
    assert phases.rows[BATCHES][2] == 0
    rates = [row[3] for row in phases.rows]
    assert rates[0] == rates[BATCHES] == 0.05
    assert rates[:BATCHES] == pytest.approx(rates[BATCHES:])
    assert phases.validation == [(False, False, False)] * 2 + [(True, True, True)] * 2
    moved = [q.step.item() for q in activation_quantizers(lit.net).values()]
    assert all(abs(a - b) > 1e-4 for a, b in zip(starts, moved, strict=True))


def test_epochs_become_optimizer_steps():
    lit = module("binary_relax", warm=1, hard_from=0.5)
    fit(lit, epochs=3, accumulate_grad_batches=2)
    steps = BATCHES // 2
    assert lit.warm_steps == steps
    relax = lit.quant_optimizer.rule.relax
    assert [relax(t) == 0 for t in range(steps + 1)] == [True] * steps + [False]
    hard = steps + round(0.5 * 2 * steps)
    assert relax(hard - 1) < 1 == relax(hard)


def test_selection_waits_for_the_hard_phase():
    lit, phases = module("binary_relax", hard_from=0.5), Phases()
    fit(lit, phases, num_sanity_val_steps=0, epochs=3)
    # theta is 1 after half of the 12 steps, in the middle of the second epoch
    assert phases.validation == [(True, True, False)] * 2 + [(True, True, True)] * 4


class MyAverage(WeightAveraging):
    """A user's own subclass."""


@pytest.mark.parametrize(
    "callback", [lambda: WeightAveraging(), lambda: StochasticWeightAveraging(0.1), MyAverage]
)
def test_averages_of_forward_weights_are_refused(callback):
    with pytest.raises(QatError, match="averages forward weights"):
        fit(module(), callback())
