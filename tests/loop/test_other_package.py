"""The same callback under the package pytorch_lightning, whose classes are others."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from qat.errors import QatError
from qat.loop.callback import Quantize

pl = pytest.importorskip("pytorch_lightning")
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers", "ignore:.*log_every_n_steps", "ignore:.*LeafSpec"
)


def module():
    class Classifier(pl.LightningModule):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.net = nn.Sequential(
                nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(),
                nn.Linear(128, 4),
            )  # fmt: skip

        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self.net(batch[0]), batch[1])

        def validation_step(self, batch, batch_idx):
            self.log("loss", F.cross_entropy(self.net(batch[0]), batch[1]))

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    return Classifier()


def test_fit_checkpoint_and_refusals(tmp_path):
    draw = torch.Generator().manual_seed(0)
    data = TensorDataset(torch.randn(32, 3, 8, 8, generator=draw), torch.arange(32) % 4)
    loader = DataLoader(data, 8)

    def fit(made, epochs, *callbacks, **options):
        chief = pl.Trainer(
            accelerator="cpu", max_epochs=epochs, logger=False, enable_progress_bar=False,
            enable_model_summary=False, default_root_dir=tmp_path, callbacks=list(callbacks),
        )  # fmt: skip
        chief.fit(made, loader, loader, **options)

    saved = pl.callbacks.ModelCheckpoint(tmp_path, save_last=True)
    fit(module(), 1, Quantize("bcgd_w1a4"), saved)
    resumed, whole = module(), module()
    fit(resumed, 2, Quantize("bcgd_w1a4"), ckpt_path=tmp_path / "last.ckpt")
    fit(whole, 2, Quantize("bcgd_w1a4"))
    assert len(whole.net[0].weight.unique()) == 2
    pairs = zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    averaging = pl.callbacks.StochasticWeightAveraging(swa_lrs=0.1)
    with pytest.raises(QatError, match="StochasticWeightAveraging averages"):
        fit(module(), 1, Quantize("bcgd_w1a4"), averaging)
