"""The callback on small networks in training, also resumed; options."""

from functools import partial
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from torch import nn

from qat import SpecError
from qat.data.digits import Digits
from qat.lit.classifier import LitClassifier
from qat.lit.measure.layer_records import layer_weights
from qat.lit.measure.records import Records
from qat.lit.resume.checkpoint_io import SafeCheckpointIO, last_good
from qat.lit.resume.run_checkpoint import RunCheckpoint
from qat.quantize.phases import Phases
from qat.quantize.prepare import prepare
from qat.spec.data import DataSpec
from qat.spec.quant import ActivationSpec, Override, QuantSpec, RuleSpec, WeightSpec
from qat.spec.run import (
    SchedulerSpec,
    TrainingSpec,
)
from support.products import mostly_slow

W32, A32 = WeightSpec(bits=32), ActivationSpec(bits=32)
OF_WEIGHTS = {"flip_rate", "distance", "scale"}


def module(spec):
    torch.manual_seed(0)
    conv = partial(nn.Conv2d, kernel_size=3, bias=False)
    relu = nn.ReLU
    net = nn.Sequential(conv(1, 4), relu(), conv(4, 4), relu(), nn.Flatten(), nn.Linear(64, 10))
    return LitClassifier(
        prepare(net, spec, example=torch.zeros(2, 1, 8, 8)),
        spec,
        optimizer=partial(torch.optim.SGD, lr=0.05),
        scheduler=SchedulerSpec(name="constant"),
        training=TrainingSpec(start_batches=1),
        classes=10,
        warm_start_epochs=1,
    )


def fit(lit, folder, *callbacks, epochs=4, ckpt_path=None):
    trainer = L.Trainer(
        plugins=[SafeCheckpointIO()],
        accelerator="cpu", devices=1, max_epochs=epochs, limit_train_batches=3, logger=False,
        limit_val_batches=1, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=list(callbacks), default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(lit, Digits(DataSpec(batch_size=32), seed=0), ckpt_path=ckpt_path)


class Signs(L.Callback):
    """Signs of the latent weights of the first layer where records are due."""

    def __init__(self):
        self.seen = []

    def _see(self, lit):
        if lit.is_quantized:
            self.seen.append(lit.quant_optimizer.latent_pairs()[0][0] >= 0)

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        if not self.seen:
            self._see(pl_module)

    def on_train_epoch_end(self, trainer, pl_module):
        self._see(pl_module)


class StopAt(L.Callback):
    """Raises before a batch, after so many optimizer steps."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            raise InterruptedError


def rows_of(path):
    lines = path.read_text().splitlines()
    return [dict(zip(lines[0].split(","), line.split(","), strict=True)) for line in lines[1:]]


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
@pytest.mark.filterwarnings("ignore:.*smaller than the logging interval.*")
@pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*")
class TestTraining:
    def test_flips_are_those_between_two_records(self, tmp_path):
        signs = Signs()
        fit(module(QuantSpec(rule=RuleSpec(name="bcgd"))), tmp_path, Records(), signs)
        rows = rows_of(tmp_path / "layers.csv")
        found = [r for r in rows if r["layer"] == "0" and r["quantity"] == "flip_rate"]
        expected = [
            float((a != b).float().mean()) for a, b in zip(signs.seen, signs.seen[1:], strict=False)
        ]
        assert [float(r["value"]) for r in found] == pytest.approx(expected)
        assert any(expected)
        assert [(r["step"], r["epoch"]) for r in found] == [("6", "1"), ("9", "2"), ("12", "3")]

    # three steps an epoch, the first epoch is float; a checkpoint after every second step
    @pytest.mark.parametrize("step", mostly_slow([2, 4, 5, 6, 7, 11], day=(0, 4)))
    def test_a_resumed_fit_leaves_the_same_bytes(self, tmp_path, step):
        def run(folder, *callbacks):
            checkpoints = tmp_path / folder / "checkpoints"
            keeper = RunCheckpoint(checkpoints, every_n_steps=2, monitor=None)
            begin = last_good(checkpoints / "last")
            lit = module(QuantSpec(rule=RuleSpec(name="bcgd")))
            fit(lit, tmp_path / folder, keeper, Records(), *callbacks, ckpt_path=begin)

        run("whole")
        with pytest.raises(InterruptedError):
            run("resumed", StopAt(step))
        run("resumed")
        for name in ("layers.csv", "histograms.csv"):
            resumed, whole = (tmp_path / folder / name for folder in ("resumed", "whole"))
            assert resumed.read_bytes() == whole.read_bytes()

    def test_records_may_be_rare(self, tmp_path):
        records = Records(every_n_epochs=2, snapshots=2)
        fit(module(QuantSpec(rule=RuleSpec(name="bcgd"))), tmp_path, records)
        assert {row["step"] for row in rows_of(tmp_path / "layers.csv")} == {"3", "9", "12"}
        assert {row["step"] for row in rows_of(tmp_path / "histograms.csv")} == {"3", "12"}

    def test_a_further_fit_starts_the_tables_anew(self, tmp_path):
        records = Records()
        for _ in range(2):
            fit(module(QuantSpec(rule=RuleSpec(name="bcgd"))), tmp_path, records, epochs=2)
        assert [r["step"] for r in rows_of(tmp_path / "histograms.csv")] == ["3"] * 3 + ["6"] * 3

    @pytest.mark.parametrize(
        ("weight", "activation", "quantities", "has_histograms"),
        [
            (W32, A32, set(), False),
            (W32, ActivationSpec(), {"alpha"}, False),
            (WeightSpec(), A32, OF_WEIGHTS, True),
            (WeightSpec(), ActivationSpec(kind="sign", bits=1), OF_WEIGHTS, True),
            (WeightSpec(method="lsq", bits=4), ActivationSpec(), {*OF_WEIGHTS, "alpha"}, True),
            (WeightSpec(method="dorefa", bits=2), ActivationSpec(), {*OF_WEIGHTS, "alpha"}, True),
            (WeightSpec(method="biper", bits=1), A32, OF_WEIGHTS, False),
        ],
    )
    def test_what_is_not_quantized_is_not_recorded(
        self, tmp_path, weight, activation, quantities, has_histograms
    ):
        rule = RuleSpec(name="bcgd" if weight == WeightSpec() else "float_only")
        spec = QuantSpec(rule=rule, weight=weight, activation=activation)
        fit(module(spec), tmp_path, Records(), epochs=2)
        found = [path.name for path in sorted(tmp_path.iterdir())]
        assert found == ["histograms.csv"] * has_histograms + ["layers.csv"] * bool(quantities)
        if quantities:
            rows = rows_of(tmp_path / "layers.csv")
            assert {row["quantity"] for row in rows} == quantities

    def test_only_a_warm_start_leaves_nothing(self, tmp_path):
        fit(module(QuantSpec(rule=RuleSpec(name="bcgd"))), tmp_path, Records(), epochs=1)
        assert list(tmp_path.iterdir()) == []


def test_layers_of_every_method_in_the_order_of_the_network():
    spec = QuantSpec(
        rule=RuleSpec(name="bcgd"),
        overrides=(Override(match="2", weight={"method": "lsq", "bits": 4}),),
    )
    lit = module(spec)
    lit.net[4] = nn.Conv2d(4, 4, 3, bias=False)
    lit.net[4].weight = lit.net[0].weight  # shared: recorded once, under the first name
    base = torch.optim.SGD(lit.net.parameters(), lr=0.1)
    lit.phases = Phases(lit.net, spec)
    lit.phases.wrap([base], [1], [0])
    found = list(layer_weights(lit))
    assert [weight.layer for weight in found] == ["0", "2", "5"]
    assert [type(weight.quantizer).__name__ for weight in found] == [
        "WeightQuantizer", "LsqWeight", "WeightQuantizer",
    ]  # fmt: skip
    assert not any(weight.latent.requires_grad for weight in found)


# -- options and tables ---------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"every_n_epochs": 0}, {"snapshots": 1}])
def test_options_are_checked(options):
    key, value = next(iter(options.items()))
    with pytest.raises(SpecError, match=rf"callbacks\.records\.{key} must be .*got {value}"):
        Records(**options)


def test_a_folder_without_its_state_is_started_anew(tmp_path):
    (tmp_path / "layers.csv").write_text("step,epoch,layer,quantity,value\n1,0,a,alpha,1.0\n")
    trainer = SimpleNamespace(default_root_dir=str(tmp_path), is_global_zero=True)
    records = Records()
    records.setup(trainer, None, "fit")
    records.on_fit_start(trainer, None)
    assert (tmp_path / "layers.csv").read_text() == "step,epoch,layer,quantity,value\n"
    assert records.state_dict()["positions"]["layers"]["rows"] == 0
