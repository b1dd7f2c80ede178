"""Lightning's callbacks and trainer flags, each with a verdict; standard library only.

A run has its own checkpoints, switches from a float phase to a quantized one at a fixed step, and
resumes bit for bit. What would move that is refused in one line, before anything runs; what works
is tried by the tests. docs/lightning.md is written from these tables.
"""

from collections.abc import Mapping
from typing import Any

from qat.errors import SpecError
from qat.spec.keys import at

_AVERAGES = (
    "averages forward weights, and averages leave the grid; use ema.decay=0.999, or "
    "Quantize(ema_decay=0.999)"
)
_SAVES = "saves beside the run's own checkpoints, which resume; leave it out"
_THAWS = "changes which parameters train while they do, which the optimizer refuses; leave it out"
_OWN = "the run sets it itself"

# name -> (why it is refused, "" if it works; a note for readers)
CALLBACKS: dict[str, tuple[str, str]] = {
    "BackboneFinetuning": (_THAWS, ""),
    "BaseFinetuning": (_THAWS, ""),
    "BasePredictionWriter": ("", "has nothing to do: a run predicts nothing"),
    "BatchSizeFinder": ("tries other batch sizes than the run's; set data.batch_size", ""),
    "Callback": ("", "the base of your own, see `allow_targets`"),
    "Checkpoint": (_SAVES, ""),
    "DeviceStatsMonitor": ("", "needs a logger, and psutil on a CPU"),
    "EarlyStopping": ("", "without a warm start and without a relaxed phase: it would end there"),
    "EMAWeightAveraging": (_AVERAGES, ""),
    "GradientAccumulationScheduler": (
        "moves the step at which quantization begins; set trainer.accumulate_grad_batches", ""
    ),
    "LambdaCallback": ("", "its functions cannot be given on a command line"),
    "LearningRateFinder": ("trains beside the run; sweep optimizer.lr, as sweep=tuned does", ""),
    "LearningRateMonitor": ("", ""),
    "ModelCheckpoint": (_SAVES, ""),
    "ModelPruning": ("parametrizes weights anew while they are quantized; prune before", ""),
    "ModelSummary": ("", ""),
    "OnExceptionCheckpoint": (_SAVES, ""),
    "ProgressBar": ("", "on a terminal; elsewhere a line per epoch stands in its place"),
    "RichModelSummary": ("", "needs rich"),
    "RichProgressBar": ("", "needs rich; on a terminal"),
    "SpikeDetection": ("", ""),
    "StochasticWeightAveraging": (_AVERAGES, ""),
    "ThroughputMonitor": ("needs a function, which no config can name; leave it out", ""),
    "Timer": ("", "a run that it ends before the quantized phase has failed"),
    "TQDMProgressBar": ("", "on a terminal"),
    "WeightAveraging": (_AVERAGES, ""),
}  # fmt: skip
# of these also in a trainer of one's own, where the others have no checkpoints to stand beside
WRONG_ANYWHERE = frozenset(
    name
    for name, (reason, _) in CALLBACKS.items()
    if reason in (_AVERAGES, _THAWS) or name in ("ModelPruning", "GradientAccumulationScheduler")
)
# trainer flag -> its values, where they are few
NO_MPS = "Apple's MPS has no float64, in which projections and scales are summed"
FLAG_CHOICES: dict[str, tuple[str, ...]] = {
    "accelerator": ("auto", "cpu", "gpu", "cuda"),
    # sharding strategies are left out: a scale needs whole tensors
    "strategy": ("auto", "ddp"),
    "precision": ("32-true", "bf16-mixed", "16-mixed"),
    "gradient_clip_algorithm": ("norm", "value"),
}
TRAINER: dict[str, tuple[str, str]] = {
    "accelerator": ("", ", ".join(FLAG_CHOICES["accelerator"])),
    "accumulate_grad_batches": ("", "counted where quantization begins"),
    "barebones": ("leaves out the run's own logger; leave it out", ""),
    "benchmark": ("", ""),
    "callbacks": (f"{_OWN}; use callbacks.NAME", ""),
    "check_val_every_n_epoch": ("", "an epoch without validation is not selected"),
    "default_root_dir": (f"{_OWN}; use hydra.run.dir", ""),
    "detect_anomaly": ("", ""),
    "deterministic": ("", ""),
    "devices": ("", "processes of this machine; auto is one on each GPU"),
    "enable_autolog_hparams": ("", ""),
    "enable_checkpointing": (_OWN, ""),
    "enable_model_summary": (f"{_OWN}; use callbacks.NAME", ""),
    "enable_progress_bar": ("", "off where there is no terminal"),
    "fast_dev_run": ("ends in the float phase; use debug=quick", ""),
    "gradient_clip_algorithm": ("", ""),
    "gradient_clip_val": ("", ""),
    "inference_mode": ("", ""),
    "limit_predict_batches": ("", "has nothing to do"),
    "limit_test_batches": ("", ""),
    "limit_train_batches": ("", ""),
    "limit_val_batches": ("", ""),
    "log_every_n_steps": ("", ""),
    "logger": (f"{_OWN}; use logger=NAME", ""),
    "max_epochs": ("", ""),
    "max_steps": (f"{_OWN}: a phase has whole epochs; use trainer.max_epochs", ""),
    "max_time": (f"{_OWN}: a phase has whole epochs; use callbacks.NAME with Timer", ""),
    "min_epochs": ("", ""),
    "min_steps": ("", ""),
    "model_registry": (_OWN, ""),
    "num_nodes": ("", "with torchrun or srun"),
    "num_sanity_val_steps": (_OWN, ""),
    "overfit_batches": ("", ""),
    "plugins": (_OWN, ""),
    "precision": ("", ", ".join(FLAG_CHOICES["precision"])),
    "profiler": ("", ""),
    "reload_dataloaders_every_n_epochs": (_OWN, ""),
    "strategy": ("", "auto, ddp: the same"),
    "sync_batchnorm": ("", "statistics of the whole batch; nothing to do on one device"),
    "use_distributed_sampler": (_OWN, ""),
    "val_check_interval": ("", ""),
}


def check_callbacks(config: Mapping[str, Any], *, has_quantizers: bool) -> None:
    """Refuse callbacks of Lightning that would change what a run is.

    Args:
        config: plain values of a whole run.
        has_quantizers: whether the run quantizes anything.

    Raises:
        SpecError: one line with the callback, why, and the cure.
    """
    for name, node in (config.get("callbacks") or {}).items():
        module, _, target = str(at(node, "_target_", "")).rpartition(".")
        if not module.startswith("lightning."):
            continue  # of the user's own; what it derives from is asked when it is there
        key = f"callbacks.{name}={target}"
        if reason := CALLBACKS.get(target, ("", ""))[0]:
            raise SpecError(f"{key} {reason}")
        if target != "EarlyStopping" or not has_quantizers:
            continue
        if at(config, "warm_start.epochs", 0):
            raise SpecError(
                f"{key} could end the run in its float warm start; set warm_start.epochs=0 and "
                "begin with init_from=FLOAT_RUN"
            )
        if at(config, "quant.rule.name") == "binary_relax":
            raise SpecError(
                f"{key} could end the run before its weights are on their grids; leave it out"
            )


def check_flags(trainer: Mapping[str, Any]) -> None:
    """Refuse trainer flags that the run sets itself, or that would change what it is.

    Args:
        trainer: of the config.

    Raises:
        SpecError: one line with the flag, why, and the cure.
    """
    for key, value in trainer.items():
        if reason := TRAINER.get(key, ("", ""))[0]:
            raise SpecError(f"trainer.{key}={value} may not be set: {reason}")
