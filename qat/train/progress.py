"""Progress of a run: how long it will take, measured, and the lines or the bar that say so.

Epochs that are printed count from 1, as they do on pages and in summary.json; those in tables
(metrics.csv, layers.csv) are Lightning's, from 0.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar

from qat.data.loader import limited
from qat.report.compare.wording import duration

_FIRST = 10  # steps after which a phase is first told


@dataclass(slots=True)
class Pace:
    """What has been timed of a phase: its steps, and what its epochs take beside them."""

    steps: int = 0
    step_seconds: float = 0.0
    epochs: int = 0
    epoch_seconds: float = 0.0

    @property
    def step(self) -> float | None:
        """Seconds a step, None before one was timed."""
        return self.step_seconds / self.steps if self.steps else None

    @property
    def evaluation(self) -> float | None:
        """Seconds an epoch beside its steps: validation above all; None before one was timed."""
        return self.epoch_seconds / self.epochs if self.epochs else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """What is left of a phase, and its pace."""

    steps: int
    epochs: int
    pace: Pace


def seconds_left(phases: Sequence[Phase], *, judging: float, batches: float) -> float | None:
    """Seconds until a run has ended, from what it has taken so far:

        sum over its phases of (steps x seconds a step + epochs x seconds of an evaluation)
        + judging x seconds of an evaluation

    A phase that has not begun is taken to be as fast as one that has: during the float warm start
    that is too little by what quantizing costs, which shows once there are quantized steps. Before
    the first evaluation, each of its batches counts a third of a step, forward without backward.

    Args:
        phases: float and quantized; the last one with steps is judged at the end.
        judging: evaluations, each of the size of training's own, at the end of the run.
        batches: batches of an evaluation in training, in those of a step.

    Returns:
        None before a step has been timed.

    >>> float_, quantized = Pace(10, 2.0, 1, 3.0), Pace()
    >>> phases = Phase(steps=5, epochs=1, pace=float_), Phase(steps=10, epochs=2, pace=quantized)
    >>> seconds_left(phases, judging=4, batches=9)
    24.0
    """  # noqa: D415
    step = _known([phase.pace.step for phase in phases])
    if step is None:
        return None
    evaluation = _known([phase.pace.evaluation for phase in phases])
    total = last = 0.0
    for phase in phases:
        own = phase.pace.step or step
        last = phase.pace.evaluation or evaluation or batches / 3 * own
        total += phase.steps * own + phase.epochs * last
    return total + judging * last


def _known(values: Sequence[float | None]) -> float | None:
    """The last value that there is."""
    return next((value for value in reversed(values) if value is not None), None)


@dataclass(slots=True)
class Clock:
    """Times the steps and the evaluations of both phases, by two looks at a clock a step.

    The first step of a phase is left out: it compiles, allocates, or measures alpha. Nothing is
    kept in a checkpoint, so a resumed run is timed anew, by the machine that it is on now.

    Attributes:
        judged: batches by which each saved state is judged once training is over.
        paces: of the float phase and of the quantized one.
        started_at: step where training began.
    """

    judged: int = 0
    paces: dict[bool, Pace] = field(default_factory=lambda: {False: Pace(), True: Pace()})
    started_at: int = 0
    _start: float = 0.0
    _mark: float = 0.0
    _step: int = 0
    _phase: bool | None = None
    _is_counted: bool = True

    def start(self, step: int) -> None:
        """Training begins, after so many steps."""
        self.started_at = self._step = step
        self._start = self._mark = time.monotonic()
        self._phase, self._is_counted = None, True

    def elapsed(self) -> float:
        """Seconds since training began."""
        return time.monotonic() - self._start

    def end_step(self, step: int, *, is_quantized: bool) -> None:
        """A batch has been trained, the last of `step` steps or one of several."""
        seconds = self._lap()
        if is_quantized is self._phase:
            pace = self.paces[is_quantized]
            pace.steps += step - self._step
            pace.step_seconds += seconds
        self._phase, self._step = is_quantized, step

    def end_evaluation(self, *, ends_epoch: bool) -> None:
        """A validation is over."""
        self._add_evaluation(counts=ends_epoch)
        self._is_counted = ends_epoch

    def begin_epoch(self) -> None:
        """The first batch of an epoch is there."""
        self._add_evaluation(counts=not self._is_counted)
        self._is_counted = False

    def _add_evaluation(self, *, counts: bool) -> None:
        seconds = self._lap()
        if self._phase is not None:
            pace = self.paces[self._phase]
            pace.epoch_seconds += seconds
            pace.epochs += counts

    def _lap(self) -> float:
        now = time.monotonic()
        seconds, self._mark = now - self._mark, now
        return seconds

    def left(self, trainer: Trainer, module: Any) -> float | None:
        """Seconds until the run has ended; see `seconds_left`."""
        per_epoch = max(1, module.total_steps // (trainer.max_epochs or 1))
        done, warm = trainer.global_step, module.warm_steps
        steps = {False: max(0, warm - done), True: module.total_steps - max(done, warm)}
        phases = [
            Phase(steps=count, epochs=-(-count // per_epoch), pace=self.paces[is_quantized])
            for is_quantized, count in steps.items()
            if count or self.paces[is_quantized].steps
        ]
        data = trainer.datamodule  # type: ignore[attr-defined]
        # Lightning's own count is there from the first validation on only
        whole = data.batches_of(data.parts.validation)
        validation = max(1, limited(whole, trainer.limit_val_batches))
        states = 1 + (module.monitor is not None) + (warm > 0)
        return seconds_left(
            phases,
            judging=states * self.judged / validation,
            batches=validation / trainer.accumulate_grad_batches,
        )


class Timing(Callback):
    """Runs the clock of a run.

    Args:
        clock: of the run.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._clock.start(trainer.global_step)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """What came before an epoch's first batch belongs to the evaluation before it."""
        if batch_idx == 0:
            self._clock.begin_epoch()

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Time the step."""
        is_quantized = bool(pl_module.is_quantized)
        self._clock.end_step(trainer.global_step, is_quantized=is_quantized)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Time the evaluation."""
        if trainer.state.fn == "fit":
            self._clock.end_evaluation(ends_epoch=trainer.is_last_batch)


class RunLines(Callback):
    """Lines for terminals and logs that cannot show a bar: one per epoch, one at its first steps.

    Args:
        clock: of the run; `Timing` stands before this.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._told: set[bool] = set()  # phases
        self._before: dict[str, Any] = {}  # metrics as they were before an evaluation

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Tell the pace of a phase after its first ten steps, or at the end of its first epoch."""
        is_quantized = bool(pl_module.is_quantized)
        if is_quantized in self._told:
            return
        pace = self._clock.paces[is_quantized]
        if pace.step and (pace.steps >= _FIRST - 1 or trainer.is_last_batch):
            self._told.add(is_quantized)
            self._tell(trainer, pl_module, pace.step)

    def _tell(self, trainer: Trainer, module: Any, step: float) -> None:
        left = self._clock.left(trainer, module)
        if left is None or not trainer.is_global_zero:
            return
        is_whole = self._clock.started_at == 0 and len(self._told) == 1
        whole = left + self._clock.elapsed()
        time_ = f"{duration(whole)} for the run" if is_whole else f"{duration(left)} left"
        print(
            f"step {trainer.global_step:,} of {module.total_steps:,}: {step:.2g} s a step, "
            f"about {time_}",
            flush=True,
        )

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember what earlier evaluations logged: Lightning goes on naming it."""
        self._before = dict(trainer.callback_metrics)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print phase, validation metrics, and what is left of the run."""
        if trainer.sanity_checking or trainer.state.fn != "fit" or not trainer.is_global_zero:
            return
        phase = "quantized" if getattr(pl_module, "is_quantized", True) else "float"
        scores = {
            name: float(value)
            for name, value in trainer.callback_metrics.items()
            # what is logged again is another tensor, of the same value too
            if name.startswith("val/") and value is not self._before.get(name)
        }
        numbers = "  ".join(f"{name} {value:.4f}" for name, value in sorted(scores.items()))
        left = self._clock.left(trainer, pl_module)
        told = "" if left is None else f"  about {duration(left)} left"
        print(
            f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  {phase:9}  {numbers}{told}",
            flush=True,
        )


class EpochBar(RichProgressBar):
    """Lightning's bar, which would count epochs from 0 up to one less than there are."""

    def _get_train_description(self, current_epoch: int) -> str:
        words = f"Epoch {current_epoch + 1}/{self.trainer.max_epochs}"
        return words.ljust(len(self.validation_description))  # else the bars jump


def show_left(trainer: Trainer, clock: Clock) -> None:
    """Let the bar of a trainer, whichever it is, say what is left of the whole run."""
    bar = trainer.progress_bar_callback
    if bar is None:
        return
    shown = bar.get_metrics

    def with_left(trainer: Trainer, module: LightningModule) -> dict[str, Any]:
        left = clock.left(trainer, module) if trainer.state.fn == "fit" else None
        return {**shown(trainer, module), **({} if left is None else {"left": duration(left)})}

    bar.get_metrics = with_left  # type: ignore[method-assign, assignment]
