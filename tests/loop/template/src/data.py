"""Images of two classes, brighter at the top or at the bottom."""

import lightning as L
import torch
from torch.utils.data import DataLoader, TensorDataset


class HalvesDataModule(L.LightningDataModule):
    def __init__(self, batch_size):
        super().__init__()
        self.save_hyperparameters()

    def setup(self, stage=None):
        draw = torch.Generator().manual_seed(0)
        labels = torch.randint(2, (192,), generator=draw)
        images = torch.randn(192, 3, 12, 12, generator=draw)
        images[:, :, :6] += (2.0 * labels - 1).view(-1, 1, 1, 1)
        parts = zip(images.split([128, 32, 32]), labels.split([128, 32, 32]), strict=True)
        self.train, self.val, self.test = (TensorDataset(*part) for part in parts)

    def train_dataloader(self):
        return DataLoader(self.train, self.hparams.batch_size, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.val, self.hparams.batch_size)

    def test_dataloader(self):
        return DataLoader(self.test, self.hparams.batch_size)
