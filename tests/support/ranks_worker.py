"""One process of a training: python ranks_worker.py RANK SIZE FOLDER NAME..., of fits by name.

Networks without BatchNorm, in float64: what two processes train is then what one does, up to the
order of sums.
"""

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import lightning as L
import torch
from torch import nn

from qat.data.dataset import images_of
from qat.data.digits import Digits
from qat.lit.classifier import LitClassifier
from qat.lit.pairing import distiller
from qat.lit.processes import trainer_options
from qat.loop.callback import Quantize
from qat.quantize.plan import resolve
from qat.quantize.prepare import prepare
from qat.ranks import group as ranks
from qat.ranks.place import Place
from qat.spec.data import DataSpec
from qat.spec.distill import DistillSpec
from qat.spec.presets import named_quantization
from qat.spec.run import RunSpec, SchedulerSpec, TrainingSpec, WarmStartSpec

EXAMPLE = torch.zeros(2, 1, 8, 8)
FITS = (
    "binary_connect_w1a4", "binary_relax_w2a4", "bcgd_w1a4", "lsq_w4a4", "dorefa_w1a4", "pact_w4a4",
    "weighted", "mixed", "label_free", "synced", "callback",
)  # fmt: skip


def network(width=6):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, width, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(width, 8, 2), nn.ReLU(),
        nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip


def network_with_norms():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 2, bias=False), nn.BatchNorm2d(8, affine=False), nn.ReLU(), nn.Flatten(),
        nn.BatchNorm1d(32), nn.Linear(32, 10),
    )  # fmt: skip


def module(name):
    """The module of a fit; one epoch of its two is the float warm start."""
    is_rule = name not in ("weighted", "mixed", "label_free", "synced")
    is_weighted = name in ("weighted", "mixed")
    spec = named_quantization(name if is_rule else "bcgd_w1a4")
    float_net = network_with_norms() if name == "synced" else network()
    net = prepare(float_net, spec, example=EXAMPLE)
    training = TrainingSpec(start_batches=1, label_smoothing=0.1 if is_weighted else 0.0)
    options = {
        "optimizer": partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=1e-4),
        "scheduler": SchedulerSpec(name="constant"),
        "training": training,
        "classes": 10,
        "warm_start_epochs": 1,
    }
    if is_weighted:
        weights = torch.linspace(0.5, 1.5, 10, dtype=torch.float64)
        return LitClassifier(net, spec, class_weights=weights, **options)
    if name != "label_free":
        return LitClassifier(net, spec, **options)
    run = RunSpec(
        model={}, data=DataSpec(), quant=spec, optimizer={}, scheduler=options["scheduler"],
        trainer={"max_epochs": 1}, warm_start=WarmStartSpec(), training=training,
        distill=DistillSpec(labels=False, layers=("0", "3")),
    )  # fmt: skip
    plan = resolve(net, spec)
    lit = distiller(net, plan, run, network(9), "here", example=EXAMPLE, **options)
    lit.teacher.net.double()
    return lit


class Losses(L.Callback):
    """The loss of every batch, over all processes, and what was logged (in float32)."""

    def __init__(self):
        self.losses, self.logged = [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        count = len(images_of(batch))
        own = torch.tensor([float(pl_module.last_loss) * count, count], dtype=torch.float64)
        loss, images = ranks.total(own)
        self.losses.append(loss / images)

    def on_train_epoch_end(self, trainer, pl_module):
        found = trainer.callback_metrics.items()
        self.logged += [float(value) for _, value in sorted(found)]


class Plain(L.LightningModule):
    """A classifier as anybody writes it, of images that a sampler divides."""

    def __init__(self):
        super().__init__()
        self.net, self.last_loss = network(), None

    def training_step(self, batch, batch_idx):
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.last_loss = loss.detach()
        return loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.01)

    def train_dataloader(self):
        images = Digits(DataSpec(), seed=0).parts.train
        pixels = images.images[:960].double() / 255
        dataset = torch.utils.data.TensorDataset(pixels, images.labels[:960])
        order = torch.utils.data.DistributedSampler(
            dataset, ranks.size(), ranks.rank(), shuffle=False
        )
        size = 80 // ranks.size()
        return torch.utils.data.DataLoader(dataset, batch_size=size, sampler=order)


def fit_with_callback():
    """Two epochs of 12 batches under `qat.Quantize`; as `fit`."""
    spec = named_quantization("bcgd_w1a4")
    # not measured: the first process would measure on its share of a batch
    spec = replace(spec, activation=replace(spec.activation, step_start="table"))
    losses, quantize = Losses(), Quantize(spec, warm_start_epochs=1)
    options = {**trainer_options("cpu"), "use_distributed_sampler": False}
    trainer = L.Trainer(
        max_epochs=2, precision="64-true", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[losses, quantize], **options,
    )  # fmt: skip
    module = Plain()
    trainer.fit(module)
    latent = quantize.quantization.phases.latent_entries(module)
    weights = {**module.state_dict(), **{f"latent {k}": w for k, w in latent.items()}}
    return {"losses": torch.stack(losses.losses), **weights}


def fit(name):
    """Two epochs, whose last batch is shared unevenly; what was logged and the latent weights."""
    torch.set_num_threads(1)
    if name == "callback":
        return fit_with_callback()
    mixing = {"mixup": 0.4, "cutmix": 1.0, "erase": 0.25} if name == "mixed" else {}
    spec = DataSpec(batch_size=90, workers=0, **mixing)
    data = Digits(spec, seed=0, labels=name != "label_free")
    lit, losses = module(name), Losses()
    lit.syncs_batchnorm = name == "synced"
    options = trainer_options("cpu")
    trainer = L.Trainer(
        max_epochs=2, precision="64-true", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        accumulate_grad_batches=2, gradient_clip_val=1.0, callbacks=[losses], **options,
    )  # fmt: skip
    trainer.fit(lit, data)
    latent = lit.phases.latent_entries(lit)
    weights = {**lit.state_dict(), **{f"latent {k}": w for k, w in latent.items()}}
    return {"losses": torch.stack(losses.losses), "logged": torch.tensor(losses.logged), **weights}


def main(rank, size, folder, names):
    place = Place(rank=rank, size=size, local_rank=rank, local_size=size)
    ranks.join(place, method=f"file://{folder}/store", backend="gloo")
    for name in names:
        torch.save(fit(name), folder / f"{name}.{rank}.pt")
    ranks.leave()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
