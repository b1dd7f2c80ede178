"""A resumed Lightning run sees exactly the batches that the interrupted one had left."""

import hashlib
import warnings
from pathlib import Path

import lightning as L
import pytest
import torch
from torch import nn

from qat.data.registry import build_data
from qat.spec.data import DataSpec

EPOCHS = 3
PLAIN = {"augment": False}
MIXED = {"rand_augment": 2, "erase": 0.25, "mixup": 0.4, "cutmix": 1.0}


class Recorder(L.LightningModule):
    """Notes a digest of each training batch: pixels and labels, so order and augmentation."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(64, 10)
        self.seen = []

    def training_step(self, batch, _):
        image, label = batch
        pixels = image.numpy().tobytes() + label.numpy().tobytes()
        self.seen.append(hashlib.sha256(pixels).hexdigest())
        return nn.functional.cross_entropy(self.net(image.flatten(1)), label)

    def validation_step(self, batch, _):
        self.net(batch[0].flatten(1))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class SaveEverywhere(L.Callback):
    """Saves in each hook that users' checkpoint callbacks save in.

    Not in on_train_epoch_start: resuming from there, Lightning 2.6.6 skips the epoch, because
    its batch counters still are those of the epoch before.
    """

    def __init__(self, folder):
        self.folder = folder
        self.saved = {}

    def save(self, trainer, model, hook):
        path = self.folder / f"{len(self.saved)}_{hook}.ckpt"
        trainer.save_checkpoint(path)
        self.saved[path] = len(model.seen)

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.save(trainer, pl_module, "batch_end")

    def on_validation_end(self, trainer, pl_module):
        if not trainer.sanity_checking:
            self.save(trainer, pl_module, "validation_end")

    def on_train_epoch_end(self, trainer, pl_module):
        self.save(trainer, pl_module, "epoch_end")

    def on_train_end(self, trainer, pl_module):
        self.save(trainer, pl_module, "train_end")


def fit(*, workers=0, data=PLAIN, epochs=EPOCHS, callbacks=(), path=None, folder=None, **trainer):
    data = build_data(DataSpec(batch_size=400, workers=workers, **data), seed=3)
    model = Recorder()
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        default_root_dir=folder,
        **trainer,
    )
    trainer.fit(model, datamodule=data, ckpt_path=path)
    return model.seen


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        # the machine may suggest more workers; all that concerns resuming stays an error
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", message=".*not resumable.*")
        yield


@pytest.mark.slow
@pytest.mark.parametrize(
    "trainer",
    [{}, {"limit_train_batches": 2}, {"limit_train_batches": 0.7}, {"val_check_interval": 2}],
    ids=["plain", "two_batches", "seven_tenths", "validation_within"],
)
def test_resume_from_every_hook_sees_the_rest(tmp_path: Path, trainer):
    saver = SaveEverywhere(tmp_path)
    full = fit(callbacks=[saver], folder=tmp_path, **trainer)
    per_epoch = len(full) // EPOCHS
    assert len(set(full)) == len(full) == EPOCHS * per_epoch  # no batch comes twice
    assert len(saver.saved) >= len(full) + 2 * EPOCHS + 1
    for path, done in saver.saved.items():
        assert fit(path=path, folder=tmp_path, **trainer) == full[done:], path.name


@pytest.mark.slow
@pytest.mark.parametrize("data", [{}, MIXED], ids=["augmented", "mixed"])
def test_resume_with_workers_and_augmentation(tmp_path: Path, data):
    workers, saver = 2, SaveEverywhere(tmp_path)
    full = fit(data=data, folder=tmp_path)
    assert fit(data=data, workers=workers, callbacks=[saver], folder=tmp_path) == full
    chosen = [p for p, done in saver.saved.items() if done in (2, 3)]
    for path in chosen:
        rest = fit(data=data, workers=workers, path=path, folder=tmp_path)
        assert rest == full[saver.saved[path] :], path.name


def test_longer_training_from_the_end_of_a_run(tmp_path: Path):
    saver = SaveEverywhere(tmp_path)
    full = fit(folder=tmp_path, epochs=EPOCHS)
    start = fit(folder=tmp_path, epochs=2, callbacks=[saver])
    assert start == full[: len(start)]
    last = list(saver.saved)[-1]
    assert last.name.endswith("train_end.ckpt")
    assert fit(path=last, folder=tmp_path) == full[len(start) :]


def test_mixed_images_are_the_same_after_a_resume(tmp_path: Path):
    saver = SaveEverywhere(tmp_path)
    options = {"data": MIXED, "epochs": 1, "limit_train_batches": 2, "folder": tmp_path}
    full = fit(callbacks=[saver], **options)
    path = next(path for path, done in saver.saved.items() if done == 1)
    assert fit(path=path, **options) == full[1:]


@pytest.mark.slow
def test_resume_of_a_resume(tmp_path: Path):
    full = fit(folder=tmp_path)
    first, second = tmp_path / "a", tmp_path / "b"
    saver = SaveEverywhere(first)
    fit(callbacks=[saver], folder=tmp_path)
    path = next(p for p, done in saver.saved.items() if done == 2)
    again = SaveEverywhere(second)
    fit(callbacks=[again], path=path, folder=tmp_path)
    for path, done in again.saved.items():
        assert fit(path=path, folder=tmp_path) == full[2 + done :], path.name
