"""A small network on the digits under a real trainer, for the promises."""

from functools import partial

import lightning as L
import torch
from torch import nn

from qat.data.digits import Digits
from qat.lit.classifier import LitClassifier
from qat.quantize.prepare import prepare
from qat.spec.data import DataSpec
from qat.spec.quant import ActivationSpec, QuantSpec, RuleSpec
from qat.spec.run import (
    SchedulerSpec,
    TrainingSpec,
)

BATCHES = 4  # per epoch


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 2, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(),
        nn.Linear(32, 10),
    )  # fmt: skip


def module(rule="bcgd", *, warm=0, base=None, training=None, scheduler=None, **numbers):
    spec = QuantSpec(
        rule=RuleSpec(name=rule, **numbers), activation=ActivationSpec(step_start="batches")
    )
    return LitClassifier(
        prepare(network(), spec, example=torch.zeros(1, 1, 8, 8)),
        spec,
        optimizer=base or partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=1e-4),
        scheduler=scheduler or SchedulerSpec(name="constant"),
        training=training or TrainingSpec(start_batches=1),
        classes=10,
        warm_start_epochs=warm,
    )


def fit(lit, *callbacks, epochs=2, ckpt_path=None, **options):
    data = Digits(DataSpec(batch_size=32), seed=0)
    trainer = L.Trainer(
        accelerator="cpu", devices=1, max_epochs=epochs, limit_train_batches=BATCHES,
        limit_val_batches=2, limit_test_batches=2, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=list(callbacks), **options,
    )  # fmt: skip
    trainer.fit(lit, data, ckpt_path=ckpt_path)
    return trainer, data
