"""The command's module and a plain one through Quantize: the same run, bit for bit."""

from functools import partial

import lightning as L
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy

from qat.data.digits import Digits
from qat.lit.classifier import LitClassifier
from qat.loop.callback import Quantize
from qat.optim.groups import parameter_groups
from qat.quantize.prepare import prepare
from qat.spec.data import DataSpec
from qat.spec.quant import ActivationSpec, QuantSpec, RuleSpec
from qat.spec.run import SchedulerSpec, TrainingSpec
from support.digits_run import BATCHES, network
from support.products import mostly_slow

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers")
SGD = partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=1e-4)
ADAM = partial(torch.optim.AdamW, lr=0.01, weight_decay=0.01)


class Plain(L.LightningModule):
    """A classifier as anybody writes it."""

    def __init__(self, net, optimizer, step_rate):
        super().__init__()
        self.net, self.optimizer, self.step_rate = net, optimizer, step_rate
        self.accuracy = MulticlassAccuracy(10, average="micro")

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        logits = self.net(batch[0])
        self.accuracy(logits, batch[1])
        self.log("val/acc", self.accuracy, on_epoch=True)
        self.log("val/loss", F.cross_entropy(logits, batch[1]), on_epoch=True)

    test_step = validation_step

    def configure_optimizers(self):
        if self.step_rate == 1:
            return self.optimizer(self.parameters())
        # steps of activations learn at a rate of their own, in a group of their own
        groups = parameter_groups(
            self.named_parameters(), lr=self.optimizer.keywords["lr"],
            weight_decay=self.optimizer.keywords["weight_decay"], step_rate=self.step_rate,
        )  # fmt: skip
        return self.optimizer(groups)


class Seen(L.Callback):
    """The metrics of every validation, and the loss of every step."""

    def __init__(self):
        self.rows, self.losses = [], []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.losses.append(outputs["loss"].detach().clone())

    def on_validation_end(self, trainer, module):
        found = trainer.callback_metrics
        self.rows.append({key: found[key].clone() for key in ("val/acc", "val/loss")})


def fit(module, *callbacks, **options):
    torch.manual_seed(1)
    seen = Seen()
    trainer = L.Trainer(
        accelerator="cpu", devices=1, max_epochs=3, limit_train_batches=BATCHES,
        limit_val_batches=2, num_sanity_val_steps=0, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[seen, *callbacks],
        **options,
    )  # fmt: skip
    trainer.fit(module, Digits(DataSpec(batch_size=32), seed=0))
    return seen


RULES = (
    ("bcgd", 0, "batches", {}),
    ("bcgd", 1, "table", {"accumulate_grad_batches": 2}),
    # by value: a norm adds up gradients in the order of the groups
    ("binary_relax", 1, "table", {"gradient_clip_val": 0.1, "gradient_clip_algorithm": "value"}),
    ("binary_connect", 0, "table", {"precision": "bf16-mixed"}),
)
RUNS = [(*row, rate, base) for row in RULES for rate in (1.0, 0.01) for base in (SGD, ADAM)]


@pytest.mark.parametrize(
    ("rule", "warm", "start", "options", "step_rate", "optimizer"),
    mostly_slow(RUNS, {0, 7, 9, 14}),
)
def test_a_plain_module_through_the_callback_is_the_same_run(
    rule, warm, start, options, step_rate, optimizer
):
    spec = QuantSpec(
        rule=RuleSpec(name=rule),
        activation=ActivationSpec(step_start=start, step_rate=step_rate),
    )
    example = torch.zeros(2, 1, 8, 8)
    ours = LitClassifier(
        prepare(network(), spec, example=example), spec, optimizer=optimizer, classes=10,
        scheduler=SchedulerSpec(name="constant"), training=TrainingSpec(start_batches=1),
        warm_start_epochs=warm,
    )  # fmt: skip
    theirs = Plain(network(), optimizer, step_rate)
    first = fit(ours, **options)
    second = fit(theirs, Quantize(spec, warm_start_epochs=warm), **options)
    assert len(first.losses) == 3 * BATCHES
    assert torch.equal(torch.stack(first.losses), torch.stack(second.losses))
    assert len(first.rows) == 3
    assert first.rows == second.rows
    states = ours.net.state_dict(), theirs.net.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert len(theirs.net[0].weight.unique()) == 2


def test_a_rate_of_steps_in_a_shared_group_is_that_of_a_group_of_their_own():
    from qat.optim.quant_optimizer import QuantOptimizer
    from qat.optim.rule import bcgd

    for base in (SGD, ADAM):
        ends = []
        for is_shared in (True, False):
            torch.manual_seed(0)
            weight, step = nn.Parameter(torch.randn(4)), nn.Parameter(torch.tensor(0.5))
            lr = base.keywords["lr"]
            own = [{"params": [weight]}, {"params": [step], "lr": lr / 64, "grad_clip": 64}]
            optimizer = QuantOptimizer(
                base([weight, step] if is_shared else own), {}, bcgd(),
                slowed=[step] if is_shared else (), step_rate=1 / 64,
            )  # fmt: skip
            for _ in range(20):
                optimizer.zero_grad()
                ((weight * step).sum() ** 2 + 40 * step**2).backward()
                optimizer.step()
            ends.append(torch.stack([step.detach(), *weight.detach()]))
        torch.testing.assert_close(ends[0], ends[1], rtol=2e-6, atol=0)
        assert not torch.equal(ends[0][0], torch.tensor(0.5))
