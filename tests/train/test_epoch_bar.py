"""The bar of a run: epochs from 1 to their number."""

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from qat.train.progress import EpochBar

IMAGES = TensorDataset(torch.zeros(4, 3))


class Net(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.f = nn.Linear(3, 1)

    def training_step(self, batch):
        return self.f(batch[0]).sum()

    def validation_step(self, batch):
        self.log("val/acc", 0.5)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Described(L.Callback):
    """Keeps what the bar says at each batch."""

    def __init__(self, bar):
        self.bar, self.said = bar, []

    def on_train_batch_end(self, *_):
        (task,) = (t for t in self.bar.progress.tasks if t.id == self.bar.train_progress_bar_id)
        self.said.append(task.description.replace("[white]", "").strip())


@pytest.mark.filterwarnings("ignore")  # Lightning's advice on loaders
def test_the_bar_counts_epochs_from_one(tmp_path):
    described = Described(bar := EpochBar())
    L.Trainer(
        accelerator="cpu", max_epochs=3, logger=False, enable_checkpointing=False,
        enable_model_summary=False, num_sanity_val_steps=0, callbacks=[bar, described],
        default_root_dir=tmp_path,
    ).fit(Net(), *(DataLoader(IMAGES, batch_size=4) for _ in range(2)))  # fmt: skip
    assert described.said == ["Epoch 1/3", "Epoch 2/3", "Epoch 3/3"]
