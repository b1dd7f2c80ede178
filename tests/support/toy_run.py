"""A small real training run for the tests of resume and signals; also a script for subprocesses.

python toy_run.py FOLDER [resume] [workers=N] [epochs=N] [delay=SECONDS] [every=N]
"""

import hashlib
import logging
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from qat.data.loader import PositionedLoader, leave_group, training_position
from qat.data.sampler import EpochBatchSampler
from qat.lit.resume.checkpoint_io import SafeCheckpointIO, last_good
from qat.lit.resume.csv_logger import RunCsvLogger
from qat.lit.resume.guards import FiniteGuard, StatelessRandomness
from qat.lit.resume.run_checkpoint import RunCheckpoint
from qat.lit.resume.signals import Signals

BATCHES, BATCH_SIZE = 7, 16


class Digits(Dataset):
    """Real digits; augmented by a shift that depends on (epoch, index) alone."""

    def __init__(self, start: int, stop: int) -> None:
        data, labels = load_digits(return_X_y=True)
        self.data = torch.tensor(data[start:stop] / 16, dtype=torch.float32).view(-1, 1, 8, 8)
        self.labels = torch.tensor(labels[start:stop])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, key: Any) -> tuple[torch.Tensor, torch.Tensor]:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        return self.data[index].roll((epoch * 31 + index) % 3, dims=-1), self.labels[index]


class Data(L.LightningDataModule):
    def __init__(self, workers: int) -> None:
        super().__init__()
        self.workers = workers

    def train_dataloader(self) -> DataLoader:
        train = Digits(0, BATCHES * BATCH_SIZE)
        sampler = EpochBatchSampler(
            len(train), BATCH_SIZE, seed=3, locate=lambda: training_position(self.trainer, BATCHES)
        )
        return PositionedLoader(
            train,
            batch_sampler=sampler,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            worker_init_fn=leave_group,
            multiprocessing_context="fork" if self.workers else None,
            generator=torch.Generator().manual_seed(0),
        )

    def val_dataloader(self) -> DataLoader:
        return DataLoader(Digits(200, 264), batch_size=32)

    test_dataloader = val_dataloader


class Toy(L.LightningModule):
    """BatchNorm, dropout, momentum and a cosine rate per step: all that a bad resume would show."""

    def __init__(self, *, delay: float = 0.0) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3),
            nn.Linear(144, 10),
        )  # fmt: skip
        self.accuracy = MulticlassAccuracy(10, average="micro")
        self.epoch_loss = MeanMetric(nan_strategy="ignore")
        self.epoch_loss.persistent(True)
        self.delay = delay
        self.seen, self.validations = [], 0

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        time.sleep(self.delay)
        x, y = batch
        loss = nn.functional.cross_entropy(self.net(x + 0.05 * torch.randn_like(x)), y)
        self.last_loss = loss.detach()
        self.epoch_loss.update(self.last_loss)
        self.seen.append((self.current_epoch, batch_idx))
        self.log("train/loss", self.last_loss)
        return loss

    def on_train_epoch_end(self) -> None:
        self.log("train/epoch_loss", self.epoch_loss.compute())
        self.epoch_loss.reset()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.accuracy(self.net(batch[0]), batch[1])
        self.log("val/acc", self.accuracy, on_epoch=True, on_step=False)

    def on_validation_start(self) -> None:
        self.validations += not self.trainer.sanity_checking

    test_step = validation_step

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1, momentum=0.9)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 21)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


class StopAt(L.Callback):
    """Raises inside a given hook, after the given number of optimizer steps."""

    def __init__(self, hook: str, step: int) -> None:
        def stop(trainer: L.Trainer, *_: Any) -> None:
            if trainer.global_step == step and not trainer.sanity_checking:
                raise InterruptedError(f"{hook} {step}")

        setattr(self, hook, stop)


def quiet() -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    torch.set_num_threads(1)


def trainer(
    folder: Path, *callbacks: L.Callback, every: int = 5, keep: int = 1, **options: Any
) -> L.Trainer:
    options = {"max_epochs": 3, "log_every_n_steps": 2, "num_sanity_val_steps": 1} | options
    options |= {"enable_progress_bar": False, "enable_model_summary": False}
    saving = RunCheckpoint(folder / "checkpoints", every_n_steps=every, keep=keep)
    return L.Trainer(
        accelerator="cpu",
        devices=1,
        enable_checkpointing=False,
        logger=RunCsvLogger(folder),
        plugins=[SafeCheckpointIO()],
        callbacks=[saving, *callbacks, StatelessRandomness(7), FiniteGuard()],
        **options,
    )


def fit(
    folder: Path,
    *callbacks: L.Callback,
    resume: bool = False,
    workers: int = 0,
    delay: float = 0.0,
    **options: Any,
) -> tuple[L.Trainer, Toy]:
    """Train to the end, or from the last good checkpoint on; the global seed must not matter."""
    quiet()
    torch.manual_seed(0)
    model = Toy(delay=delay)
    torch.manual_seed(99 if resume else 1)
    runner = trainer(folder, *callbacks, **options)
    start = last_good(folder / "checkpoints" / "last") if resume else None
    runner.fit(model, Data(workers), ckpt_path=start)
    return runner, model


def digest(model: nn.Module) -> str:
    total = hashlib.sha256()
    for tensor in model.state_dict().values():
        total.update(tensor.detach().numpy().tobytes())
    return total.hexdigest()


def main(folder: str, *words: str) -> None:
    options = dict(word.split("=") for word in words if "=" in word)
    with Signals() as signals:
        _, model = fit(
            Path(folder),
            signals,
            resume="resume" in words,
            workers=int(options.get("workers", 0)),
            delay=float(options.get("delay", 0)),
            every=int(options.get("every", 5)),
        )
    print("digest", digest(model), "trained", len(model.seen))


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    main(*sys.argv[1:])
