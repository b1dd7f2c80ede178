"""A checkpoint knows its images by class and name, under a trainer of the user's own, too."""

from functools import partial

import lightning as L
import pytest
import torch
from torch import nn

from qat.data.registry import build_data
from qat.errors import CheckpointError
from qat.lit.classifier import LitClassifier
from qat.quantize.prepare import prepare
from qat.spec.data import DataSpec
from qat.spec.quant import QuantSpec
from qat.spec.run import SchedulerSpec, TrainingSpec
from support.image_folders import write_pictures


def fit(root, *, epochs, path=None):
    net = nn.Sequential(nn.Conv2d(3, 2, 5), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 12 * 12, 2))
    lit = LitClassifier(
        prepare(net, QuantSpec(), example=torch.zeros(2, 3, 16, 16)),
        QuantSpec(),
        optimizer=partial(torch.optim.SGD, lr=0.01),
        scheduler=SchedulerSpec(),
        training=TrainingSpec(),
        classes=2,
    )
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=epochs, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    options = DataSpec(name="image_folder", root=str(root), image_size=16, batch_size=8)
    trainer.fit(lit, build_data(options), ckpt_path=path)
    return trainer


def test_other_classes_or_names_are_refused_at_an_equal_count(tmp_path):
    root, path = write_pictures(tmp_path / "d", {"cat": 10, "dog": 10}), tmp_path / "a.ckpt"
    fit(root, epochs=1).save_checkpoint(path)
    assert fit(root, epochs=2, path=path).current_epoch == 2
    (root / "cat").rename(root / "zebra")
    with pytest.raises(CheckpointError, match=r"other classes, or with training images of other n"):
        fit(root, epochs=2, path=path)
    (root / "zebra").rename(root / "cat")
    content = torch.load(path, weights_only=True)
    del content["qat"]["content"]  # as earlier versions wrote it
    torch.save(content, path)
    (root / "cat").rename(root / "aardvark")
    assert fit(root, epochs=2, path=path).current_epoch == 2
