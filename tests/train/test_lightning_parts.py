"""Lightning's callbacks and flags: each has a verdict, and each verdict is what happens."""

import inspect
import json

import lightning as L
import pytest
from lightning.pytorch import callbacks

from qat.compose import checked, conf_folder
from qat.errors import SpecError
from qat.spec.lightning import CALLBACKS, TRAINER
from support.real_run import train

QUICK = ["model=lenet5", "debug=quick", "training.threads=1", "callbacks.diagnostics=null",
         "callbacks.records=null", "trainer.max_epochs=4"]  # fmt: skip
WARM = "warm_start.epochs=2"
ARGUMENTS = {
    "BasePredictionWriter": ", write_interval: epoch",
    "EarlyStopping": ", monitor: val/acc, mode: max, patience: 9",
    "Timer": ", duration: '00:01:00:00'",
}
VALUES = {
    "accelerator": "cpu", "accumulate_grad_batches": "2", "benchmark": "true",
    "check_val_every_n_epoch": "2", "detect_anomaly": "true", "deterministic": "true",
    "devices": "1", "enable_autolog_hparams": "false", "enable_progress_bar": "true",
    "gradient_clip_algorithm": "value", "gradient_clip_val": "1.0", "inference_mode": "false",
    "limit_predict_batches": "1", "limit_test_batches": "1", "limit_train_batches": "2",
    "limit_val_batches": "1", "log_every_n_steps": "1", "max_epochs": "5", "min_epochs": "9",
    "min_steps": "99", "overfit_batches": "2", "precision": "bf16-mixed", "profiler": "simple",
    "num_nodes": "1", "strategy": "auto", "sync_batchnorm": "true", "val_check_interval": "1",
}  # fmt: skip
# of a machine that has psutil; functions, which no command line can give; nothing to be seen
NOT_HERE = {"DeviceStatsMonitor", "RichModelSummary", "RichProgressBar"}
BY_DAY = {"EarlyStopping"}


def named(name, arguments=""):
    return f"+callbacks.x={{_target_: lightning.pytorch.callbacks.{name}{arguments}}}"


def rows(names):
    return [pytest.param(n, marks=() if n in BY_DAY else pytest.mark.slow) for n in sorted(names)]


def test_each_has_a_verdict():
    assert set(callbacks.__all__) == set(CALLBACKS)
    assert set(inspect.signature(L.Trainer.__init__).parameters) - {"self"} == set(TRAINER)


@pytest.mark.parametrize("name", [name for name, (reason, _) in CALLBACKS.items() if reason])
def test_a_callback_is_refused_before_anything_runs(name):
    with pytest.raises(SpecError, match=rf"^callbacks\.x={name} ") as caught:
        checked(conf_folder(), [*QUICK, WARM, named(name)])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [name for name, (reason, _) in TRAINER.items() if reason])
def test_a_flag_is_refused_before_anything_runs(name):
    with pytest.raises(SpecError, match=rf"trainer\.{name}=1 may not be set: "):
        checked(conf_folder(), [*QUICK, WARM, f"++trainer.{name}=1"])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([WARM], "in its float warm start"),
        (["quant=lsq_w4a4", WARM], "in its float warm start"),
        (["quant=binary_relax_w4a4", "warm_start.epochs=0"], "before its weights are on their"),
    ],
)
def test_early_stopping_may_not_end_a_run_before_it_quantizes(words, told):
    stopping = named("EarlyStopping", ARGUMENTS["EarlyStopping"])
    with pytest.raises(SpecError, match=told):
        checked(conf_folder(), [*QUICK, *words, stopping])
    assert checked(conf_folder(), [*QUICK, "quant=float", "warm_start.epochs=0", stopping])


def finished(folder, *words):
    train(*QUICK, *words, f"hydra.run.dir={folder}", cwd=folder.parent)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["rule"]["quantized_steps"] > 0
    assert summary["quantized_share"] == 1


@pytest.mark.parametrize("name", rows(n for n in {*CALLBACKS} - NOT_HERE if not CALLBACKS[n][0]))
def test_a_callback_works(name, tmp_path):
    warm = "warm_start.epochs=0" if name == "EarlyStopping" else WARM
    finished(tmp_path / "run", warm, named(name, ARGUMENTS.get(name, "")))


@pytest.mark.parametrize("name", rows(n for n in TRAINER if not TRAINER[n][0]))
def test_a_flag_works(name, tmp_path):
    finished(tmp_path / "run", WARM, f"++trainer.{name}={VALUES[name]}")


def test_a_run_that_ends_in_its_warm_start_has_failed(tmp_path):
    stop = named("Timer", ", duration: '00:00:00:00'")
    told = train(*QUICK, WARM, stop, f"hydra.run.dir={tmp_path / 'run'}", cwd=tmp_path, code=1)
    assert told.splitlines()[-1].startswith("error: the run ended after ")
    assert "nothing was quantized" in told
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "failed"
    assert not (tmp_path / "run" / "summary.json").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["+trainer.val_check_interval=4"], "val_check_interval"),
        ([named("EarlyStopping", ", monitor: nonsense"), "warm_start.epochs=0"], "nonsense"),
    ],
    ids=["interval", "monitor"],
)
def test_what_lightning_refuses_once_it_trains_is_one_line(words, told, tmp_path):
    out = train(*QUICK, *words, f"hydra.run.dir={tmp_path}/run", cwd=tmp_path, code=1)
    last = out.rstrip().splitlines()[-1]
    assert last.startswith("error: trainer or callbacks: ")
    assert told in last
    assert "Traceback" not in out
