"""How large a run's checkpoints are, in sizes of its float network."""

from contextlib import contextmanager
from functools import partial

import lightning as L
import pytest
import torch
from torch import nn

from qat.data.digits import Digits
from qat.lit.classifier import LitClassifier
from qat.lit.measure.records import Records
from qat.lit.resume.checkpoint_io import SafeCheckpointIO
from qat.lit.resume.run_checkpoint import RunCheckpoint
from qat.lit.resume.warm_start import KeepWarmStart
from qat.quantize.prepare import prepare
from qat.spec.data import DataSpec
from qat.spec.quant import QuantSpec, RuleSpec, WeightSpec
from qat.spec.run import SchedulerSpec, TrainingSpec
from qat.storage import checkpoint

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
    pytest.mark.filterwarnings("ignore:.*smaller than the logging interval"),
]
SGD = partial(torch.optim.SGD, lr=0.05, momentum=0.9)
ADAMW = partial(torch.optim.AdamW, lr=1e-3)


class Sizes(L.Callback):
    """Bytes of all files of a folder after each batch, and whenever one has been written whole."""

    def __init__(self, folder):
        self.folder, self.seen, self.in_a_save = folder, [], []

    def on_train_batch_end(self, *_):
        self.seen.append(self.size())

    def size(self):
        files = [path for path in self.folder.rglob("*") if path.is_file()]
        return sum(path.stat().st_size for path in files)


def module(optimizer, rule):
    """A network of 1.1 million weights, so that what is not weights counts little."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(),
        nn.Linear(1024, 10),
    )  # fmt: skip
    spec = QuantSpec(rule=RuleSpec(name=rule), weight=WeightSpec(bits=1))
    return LitClassifier(
        prepare(net, spec, example=torch.zeros(2, 1, 8, 8)),
        spec,
        optimizer=optimizer,
        scheduler=SchedulerSpec(name="constant"),
        training=TrainingSpec(start_batches=1),
        classes=10,
        warm_start_epochs=1,
    )


@pytest.mark.parametrize(
    ("optimizer", "limit"),
    # a state with momentum, the selected weights and those of the warm start; AdamW has two means
    # of a weight's size instead of one
    [(SGD, 4.0), pytest.param(ADAMW, 5.0, marks=pytest.mark.slow)],
)
@pytest.mark.parametrize("rule", ["bcgd", pytest.param("binary_relax", marks=pytest.mark.slow)])
def test_checkpoints_of_a_run_are_few_times_its_weights(
    tmp_path, optimizer, limit, rule, monkeypatch
):
    lit, folder = module(optimizer, rule), tmp_path / "checkpoints"
    sizes = Sizes(folder)
    real = checkpoint.replacing

    @contextmanager
    def looked_at(path):
        with real(path) as file:
            yield file
        sizes.in_a_save.append(sizes.size())

    monkeypatch.setattr(checkpoint, "replacing", looked_at)
    L.Trainer(
        accelerator="cpu", devices=1, max_epochs=6, limit_train_batches=2, limit_val_batches=1,
        logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, plugins=[SafeCheckpointIO()], default_root_dir=tmp_path,
        callbacks=[
            RunCheckpoint(folder, every_n_steps=3), KeepWarmStart(folder), Records(), sizes
        ],
    ).fit(lit, Digits(DataSpec(batch_size=32), seed=0))  # fmt: skip
    kinds = sorted(path.relative_to(folder).parts[0] for path in folder.rglob("*.ckpt"))
    assert kinds == ["best", "last", "warm_start.ckpt"]
    weights = sum(p.nbytes for p in lit.parameters())
    # 0.1 for what is not weights: codes of the records, names, 64 bytes of padding an entry
    assert max(sizes.seen) <= (limit + 0.1) * weights
    assert sizes.seen[-1] > (limit - 0.5) * weights  # or this measures something else
    # beside these the new state alone, once it is whole and the old one is not yet deleted
    assert max(sizes.in_a_save) <= (limit + limit - 2 + 0.1) * weights
