"""Fit of a run from its newest checkpoint, then the summary."""

import logging
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ProgressBar

from qat.data.module import ImageData
from qat.errors import CheckpointError, DataError, QatError, SpecError, shown
from qat.lit.processes import trainer_options
from qat.lit.resume.checkpoint_io import SafeCheckpointIO
from qat.lit.resume.csv_logger import RunCsvLogger
from qat.lit.resume.guards import FiniteGuard, StatelessRandomness
from qat.lit.resume.run_checkpoint import RunCheckpoint, is_at_end
from qat.lit.resume.signals import Signals
from qat.lit.resume.warm_start import KeepWarmStart
from qat.quantize.audit import Audit
from qat.ranks import group as ranks
from qat.spec.run import RunSpec
from qat.storage.checkpoint import load_last_good
from qat.storage.reading import parsing, reason_of
from qat.train.build import Built, Parts
from qat.train.initial import begin_from_images, record_of_init
from qat.train.progress import Clock, EpochBar, RunLines, Timing, show_left
from qat.train.summary import judged_batches, limits, summarized

_QUIET = (
    ".*does not have many workers.*",
    ".*number of training batches.*is smaller than the logging interval.*",
    ".*recommended to use `self.log.*sync_dist=True.*",  # what is logged is of all processes
    ".*isinstance.treespec, LeafSpec.*",
    ".*`lr_scheduler.step..` before `optimizer.step..`.*",
)


def train(
    built: Built, spec: RunSpec, parts: Parts, folder: Path, *, signals: Signals
) -> tuple[dict[str, Any], Audit | None]:
    """Fit, test once, audit; returns the content of summary.json and the audit.

    Continues from the newest good checkpoint of `folder` if there is one.

    Raises:
        QatError: the loss or a gradient is not finite, a checkpoint cannot be written, or the
            audit finds a value off the grid.
    """
    _quieten_lightning()
    checkpoints = folder / "checkpoints"
    keeper = RunCheckpoint(
        checkpoints,
        every_n_steps=spec.training.checkpoint_every,
        monitor=built.lit.monitor,
        selectable=lambda _, module: module.is_selectable,  # type: ignore[arg-type, return-value]
    )
    built.lit.syncs_batchnorm = bool(spec.trainer.get("sync_batchnorm", False))
    clock = Clock(judged=judged_batches(built.data, spec))
    # read once, for what is asked of it here and for Lightning
    trains = spec.trainer["max_epochs"] > 0  # else it is done again, in seconds
    newest = load_last_good(checkpoints / "last") if trains else None
    begin = newest and newest[0]
    reader = SafeCheckpointIO(newest)
    trainer = _trainer(spec, parts, folder, clock, [keeper, signals], reader, built.data)
    if begin is not None:
        print(f"resume: {shown(begin)}", flush=True)
    elif spec.resume is not None:
        print("resume: no checkpoint was saved; from step 0", flush=True)
    if newest is not None and is_trained(*newest, spec):
        print("resume: the run is trained; what is left is its test", flush=True)
    del newest  # the trainer's alone
    start = time.monotonic()
    with _saying_how_to_go_on(folder, "goes on from its last checkpoint"):
        if begin is None and spec.init is not None:
            begin_from_images(built, spec.init, folder)
        _fit(trainer, built, begin, keeper)
        if not trains:
            trainer.validate(built.lit, datamodule=built.data, verbose=False)
            keeper.save_untrained(trainer)
    seconds = time.monotonic() - start
    with _saying_how_to_go_on(folder, "tests what is trained"):
        summary, found = summarized(built, spec, trainer, keeper, checkpoints)
    return summary | {"fit_seconds": seconds} | record_of_init(folder), found


def _fit(trainer: L.Trainer, built: Built, begin: Path | None, keeper: RunCheckpoint) -> None:
    """Train from a checkpoint on; what others raise becomes one line."""
    try:
        trainer.fit(built.lit, datamodule=built.data, ckpt_path=begin, weights_only=True)
    except MisconfigurationException as error:
        raise SpecError(f"trainer: {str(error).splitlines()[0]}") from error
    except ModuleNotFoundError as error:  # of a callback that needs another package
        raise SpecError(str(error)) from error
    except QatError:
        raise
    except Exception as error:  # Lightning hands each part of a file to whoever it belongs to
        if begin is None or keeper.has_begun or ranks.is_loss(error):
            if _is_refusal(error):
                raise SpecError(f"trainer or callbacks: {reason_of(error)}") from error
            raise
        raise CheckpointError(
            f"checkpoint {begin} is none of this run ({reason_of(error)}); delete it, or start a "
            "new run"
        ) from error
    if built.lit.spec.has_quantizers and not built.lit.is_quantized:
        raise QatError(
            f"the run ended after {trainer.global_step} steps, in its float warm start of "
            f"{built.lit.warm_steps}: nothing was quantized; let it run longer, or shorten "
            "warm_start.epochs"
        )


def _is_refusal(error: Exception) -> bool:
    """Whether Lightning itself says no to an option, and not what it calls.

    It checks some options only once it trains, and has no class for that.
    """
    frame = list(traceback.walk_tb(error.__traceback__))[-1][0]
    is_lightnings = str(frame.f_globals.get("__name__")).startswith("lightning.")
    return is_lightnings and isinstance(error, (ValueError, RuntimeError, TypeError))


@contextmanager
def _saying_how_to_go_on(folder: Path, what: str) -> Iterator[None]:
    """A block that reads images: if one is damaged, what was trained before is not lost."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{error}; then resume={folder} {what}") from error


def is_trained(checkpoint: Path, content: Mapping[str, Any], spec: RunSpec) -> bool:
    """Whether a checkpoint is that of a run's end, so that only its test is left."""
    with parsing(f"checkpoint {checkpoint}", "delete it, or start a new run"):
        return is_at_end(content, spec.trainer["max_epochs"])


def _trainer(
    spec: RunSpec,
    parts: Parts,
    folder: Path,
    clock: Clock,
    first: Sequence[L.Callback],
    reader: SafeCheckpointIO,
    data: ImageData,
) -> L.Trainer:
    callbacks = [
        *first,
        StatelessRandomness(spec.seed),
        KeepWarmStart(folder / "checkpoints"),
        FiniteGuard(spec.training.skips if spec.training.non_finite == "skip" else 0),
        Timing(clock),
        *parts.callbacks,
    ]
    if not spec.trainer.get("enable_progress_bar", True):
        callbacks = [c for c in callbacks if not isinstance(c, ProgressBar)] + [RunLines(clock)]
    elif not any(isinstance(c, ProgressBar) for c in callbacks):
        callbacks.append(EpochBar())
    own = trainer_options(spec.trainer.get("accelerator", "auto"))
    options = {**spec.trainer, **own, **limits(data, spec), "sync_batchnorm": False}  # by our own
    try:
        trainer = L.Trainer(
            **{**options, "plugins": [*options["plugins"], reader]},
            callbacks=callbacks,
            logger=[RunCsvLogger(folder), *parts.loggers],
            enable_checkpointing=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            default_root_dir=folder,
        )
    except (ValueError, TypeError, MisconfigurationException) as error:
        raise SpecError(f"trainer: {str(error).splitlines()[0]}") from error
    show_left(trainer, clock)
    return trainer


def _quieten_lightning() -> None:
    """Hide advice that does not apply; what matters here is printed by the run itself."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in _QUIET:
        warnings.filterwarnings("ignore", message=message)


def recorded_teacher(folder: Path) -> str | None:
    """The checkpoint of the teacher that an interrupted run began with, None before its first."""
    newest = load_last_good(folder / "checkpoints" / "last")
    if newest is None:
        return None
    origin: str | None = newest[1]["qat"].get("teacher", {}).get("origin")
    return origin if origin is not None and Path(origin).is_file() else None
