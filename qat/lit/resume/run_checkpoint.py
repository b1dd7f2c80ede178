"""Checkpoint callback: when a run saves, what it keeps, how Lightning finds its place again.

Checkpoints are taken only between two batches: after all that belongs to the last one (update,
schedules, logging, validation, end of the epoch), before anything of the next. So rows of
metrics.csv are before it or after it, and no validation is skipped or run twice. Lightning's loop
counters are put to rest in a checkpoint; checked against Lightning 2.6.6, whose counters have
`ready`, `started`, `processed` and `completed`, each as `total` and as `current` (this epoch).
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import lightning as L
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from typing_extensions import override

from qat.errors import CheckpointError, SpecError
from qat.lit.resume.checkpoint_io import SafeCheckpointIO, checkpoint_name, checkpoints_by_step
from qat.lit.resume.csv_logger import RunCsvLogger
from qat.lit.resume.guards import refuse_non_finite
from qat.lit.resume.selection import Best, Selection, keep_only
from qat.lit.resume.weights_alone import copied, weights_alone
from qat.ranks import group as ranks
from qat.storage.checkpoint import load_last_good, save

_KEY = "qat_run"
# batch: inside an epoch; epoch: between two epochs; end: after the last one
Boundary = Literal["batch", "epoch", "end"]
Selectable = Callable[[Trainer, LightningModule], bool]


class RunCheckpoint(Callback):
    """Writes `folder/last/step=<n>.ckpt` (the newest) and `folder/best/step=<n>.ckpt`.

    A run goes on from `last`, which holds all of it. `best` holds the weights of the selected
    epoch alone. They wait in memory for the next checkpoint of `last`, the first to name them:
    so there is one such file, however often the best epoch is a new one. A run that fails in
    between writes them, one that is killed comes by that epoch again.

    A save is four moves, each whole and on disk before the next one begins: write the new `best`,
    delete the old one, write the new `last`, delete the old one. So at any moment there is a sound
    file of either kind, and never more than one file too many. A kill between the second and the
    third move leaves a `last` that names a `best` no longer there; the newer one says itself what
    it is, and a resume takes it over: the run comes by that epoch again, with the same score.

    It must be the first callback, so that no other one has begun the next batch when it saves;
    the Trainer needs `enable_checkpointing=False` and `SafeCheckpointIO`.

    `Selection` says which epoch is kept in `best/`; no callback may change the weights between
    a validation and the next batch, when they are taken.

    Args:
        folder: `RUN/checkpoints`.
        every_n_steps: Optimizer steps between checkpoints, >= 1; ends of epochs are saved too.
        keep: Checkpoints kept in `last/`, >= 1; with more, a damaged one leaves an older one.
        monitor: Validation metric that selects; None selects nothing.
        mode: Whether a larger or a smaller score is better.
        selectable: Whether the weights just validated may be the result (are fully quantized).

    Attributes:
        has_begun: Whether training goes on, so that a checkpoint it began with has been taken over.

    Raises:
        SpecError: A number is out of range.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        every_n_steps: int = 500,
        keep: int = 1,
        monitor: str | None = "val/acc",
        mode: Literal["max", "min"] = "max",
        selectable: Selectable | None = None,
    ) -> None:
        if every_n_steps < 1 or keep < 1:
            raise SpecError(f"every_n_steps and keep must be >= 1, got {every_n_steps} and {keep}")
        self._folder = Path(folder)
        self._every, self._keep = every_n_steps, keep
        self._monitor, self._selectable = monitor, selectable
        self._selection = Selection(mode)
        self._best_is_new = False
        self._waiting: tuple[Path, dict[str, Any]] | None = None
        self._boundary: Boundary | None = None
        self._saved_step = 0
        self.has_begun = False

    @property
    def best(self) -> Best | None:
        """The selected epoch so far, None before the first validation."""
        return self._selection.best

    @property
    def best_path(self) -> Path | None:
        """Checkpoint of the selected epoch."""
        return self._folder / self.best["path"] if self.best else None

    def save(self, trainer: Trainer, boundary: Boundary) -> None:
        """Save the state of this boundary unless it is on disk already.

        Args:
            trainer: at a boundary.
            boundary: which it is.

        Raises:
            CheckpointError: The file cannot be written; older ones are untouched.
            NonFiniteError: A weight or an optimizer state is not finite; nothing is written.
        """
        self._take_best(trainer)
        step = trainer.global_step
        self._write_best()
        if trainer.is_global_zero:
            self._clean_best()
        if step > self._saved_step or (step == 0 and boundary == "end"):  # a run of no step
            self._write(trainer, self._folder / "last" / checkpoint_name(step), boundary)
            self._saved_step = step
        if trainer.is_global_zero:
            self._clean_last(step)

    def save_untrained(self, trainer: Trainer) -> None:
        """Save a run of no epoch: its one state is its last and its selected one.

        Args:
            trainer: that has just validated it.

        Raises:
            CheckpointError: as `save`.
        """
        if self._monitor is not None:
            score = float(trainer.callback_metrics[self._monitor])
            self._best_is_new = self._selection.offer(score, step=trainer.global_step)
        self.save(trainer, "end")

    def _take_best(self, trainer: Trainer) -> None:
        """Keep the weights of an epoch just selected, before the next batch changes them."""
        if not (self._best_is_new and self.best_path and trainer.is_global_zero):
            return
        place = {
            "epoch": trainer.current_epoch,
            "global_step": trainer.global_step,
            "pytorch-lightning_version": L.__version__,  # Lightning reads no file without it
            _KEY: {"best": self._selection.state_dict()},
        }
        weights = weights_alone(trainer.lightning_module, **place)
        weights["state_dict"] = copied(weights["state_dict"])
        # under its own name: a failure may come when the next one is selected and not yet taken
        self._waiting = self.best_path, weights
        self._best_is_new = False

    def _write_best(self) -> None:
        if self._waiting is not None:
            path, weights = self._waiting
            save(weights, path)
            self._waiting = None

    def _write(self, trainer: Trainer, path: Path, boundary: Boundary) -> None:
        self._boundary = boundary
        # as they will be for all processes after the next step, and after a resume
        ranks.copy_from_first(trainer.lightning_module.buffers())
        trainer.save_checkpoint(path, weights_only=False)
        self._boundary = None

    def _clean_last(self, step: int) -> None:
        """Delete what is superseded, steps among it that a resumed run has yet to take again."""
        taken = [saved for saved in checkpoints_by_step(self._folder / "last") if saved <= step]
        keep_only(self._folder / "last", taken[-self._keep :])

    def _clean_best(self) -> None:
        if self.best_path and self.best and self.best_path.exists():
            keep_only(self._folder / "best", [self.best["step"]])

    def _found_best(self, named: Best | None) -> Best | None:
        """The selected epoch that a checkpoint names, or the one whose weights replaced its."""
        if named is None or self._folder.joinpath(named["path"]).exists():
            return named
        found = load_last_good(self._folder / "best")
        later: Best | None = found[1].get(_KEY, {}).get("best") if found else None
        return later or named

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a trainer that would write or read checkpoints in another way.

        Raises:
            SpecError: The checkpoint plugin or the order of the callbacks is wrong.
        """
        if not isinstance(trainer.strategy.checkpoint_io, SafeCheckpointIO):
            raise SpecError("RunCheckpoint needs Trainer(plugins=[SafeCheckpointIO()])")
        if trainer.callbacks[0] is not self:  # type: ignore[attr-defined]
            raise SpecError("RunCheckpoint must be the first of Trainer(callbacks=[...])")

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A run from the beginning starts its metrics.csv anew; from here on its folder stays."""
        self._folder.mkdir(parents=True, exist_ok=True)
        if self._saved_step == 0:
            for logger in _csv_loggers(trainer):
                logger.rewind()

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """All that a checkpoint holds has been taken over by now."""
        self.has_begun = True

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save between two epochs, if it is time."""
        if trainer.global_step > 0:
            self._save_if_due(trainer, "epoch")

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Save inside an epoch; a step is first seen here when its gradients are used up."""
        if batch_idx > 0:  # the boundary before the first one is on_train_epoch_start
            self._save_if_due(trainer, "batch")

    def _save_if_due(self, trainer: Trainer, boundary: Boundary) -> None:
        self._take_best(trainer)
        if trainer.global_step - self._saved_step >= self._every:
            self.save(trainer, boundary)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the end of the run."""
        self.save(trainer, "end")

    @override
    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Leave the selected weights of a run that ends before they were due."""
        with suppress(CheckpointError):  # what is told is why the run ended
            self._write_best()

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note whether this epoch is the best; it is taken at the boundary that follows.

        Raises:
            SpecError: The metric to select by was not logged.
        """
        is_fitting = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        if self._monitor is None or not is_fitting:
            return
        if self._monitor not in trainer.callback_metrics:
            logged = ", ".join(sorted(trainer.callback_metrics)) or "nothing"
            raise SpecError(f"monitor {self._monitor!r} was not logged; logged: {logged}")
        score = float(trainer.callback_metrics[self._monitor])
        selectable = self._selectable is None or self._selectable(trainer, pl_module)
        self._best_is_new |= self._selection.offer(
            score, step=trainer.global_step, selectable=selectable
        )

    @override
    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the selected epoch and the place in metrics.csv; put Lightning's counters at rest.

        Raises:
            NonFiniteError: A weight or an optimizer state is not finite.
        """
        refuse_non_finite(checkpoint)
        metrics = [logger.position() for logger in _csv_loggers(trainer)]
        checkpoint[_KEY] = {"best": self._selection.state_dict(), "metrics": metrics}
        if self._boundary:
            rest_at(self._boundary, checkpoint["loops"]["fit_loop"], trainer)

    @override
    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Continue the selection and metrics.csv; loading for a test changes neither."""
        if trainer.state.fn != TrainerFn.FITTING or _KEY not in checkpoint:
            return
        self._selection.load_state_dict(self._found_best(checkpoint[_KEY]["best"]))
        self._saved_step = checkpoint["global_step"]
        for logger, rows in zip(_csv_loggers(trainer), checkpoint[_KEY]["metrics"], strict=False):
            logger.rewind(rows)


def is_at_end(checkpoint: Mapping[str, Any], epochs: int | None) -> bool:
    """Whether a checkpoint was taken after the last of `epochs` epochs; None stands for no end."""
    loops = checkpoint.get("loops", {}).get("fit_loop", {})
    done: int = loops.get("epoch_progress", {}).get("current", {}).get("completed", 0)
    return epochs is not None and 0 < epochs <= done


def _csv_loggers(trainer: Trainer) -> list[RunCsvLogger]:
    return [logger for logger in trainer.loggers if isinstance(logger, RunCsvLogger)]


def rest_at(boundary: Boundary, loops: dict[str, Any], trainer: Trainer) -> None:
    """Rewrite the saved counters so that a resume goes on exactly at the boundary.

    Lightning offers no hook between two batches, so the hook of the next one is used, which has
    counted `ready` already.

    Args:
        boundary: Where the state was taken.
        loops: `checkpoint["loops"]["fit_loop"]`, changed in place.
        trainer: Tells whether steps or epochs limit the run.
    """
    if boundary == "batch":
        _add(loops["epoch_loop.batch_progress"], ready=-1)
        loops["epoch_loop.batch_progress"]["is_last_batch"] = False
        _as_after_batch(loops)
    elif boundary == "epoch":
        _add(loops["epoch_progress"], ready=-1)
        # a run limited by max_steps always takes the path of an unfinished epoch
        if trainer.max_steps != -1:
            loops["epoch_loop.val_loop.batch_progress"]["is_last_batch"] = True
            _as_after_batch(loops)


def _as_after_batch(loops: dict[str, Any]) -> None:
    """Make the state look as if taken in `on_train_batch_end`.

    That is where Lightning's own callback saves, and the only state inside an epoch that it
    resumes without running or skipping a validation or losing a logging step.
    """
    _add(loops["epoch_loop.batch_progress"], completed=-1)
    loops["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1


def _add(progress: dict[str, Any], **changes: int) -> None:
    for part in ("total", "current"):
        for counter, change in changes.items():
            progress[part][counter] += change
