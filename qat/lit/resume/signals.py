"""Signal handling: SIGTERM and SIGINT save between two batches and leave with 143 or 130."""

import logging
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self

from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from qat.errors import QatError
from qat.lit.resume.run_checkpoint import RunCheckpoint
from qat.ranks import group as ranks

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_Handlers = dict[signal.Signals, Callable[[int, FrameType | None], Any] | int | None]
_log = logging.getLogger(__name__)


class Interrupted(SystemExit):
    """The run was asked to stop; the exit code is 128 + signal (143 SIGTERM, 130 SIGINT).

    Args:
        signum: The signal.
    """

    def __init__(self, signum: int) -> None:
        self.signum = signal.Signals(signum)
        super().__init__(128 + signum)


class Signals(Callback):
    """Turns SIGTERM and SIGINT into `Interrupted`.

    While batches are trained the handler only sets a flag; at the next boundary between batches
    (after a validation, if one is running) the state is saved through the trainer's
    `RunCheckpoint` and `Interrupted` is raised. Signals after the first change nothing, so neither
    the save nor the clean-up is cut; kill -9 is safe at any time. Outside the training (set-up,
    test, reports) `Interrupted` is raised at once; for that, use the object as a context manager
    around the whole run as well:

        with Signals() as signals:
            Trainer(callbacks=[RunCheckpoint(...), signals, ...]).fit(...)

    Stand it behind `RunCheckpoint` in the list. Lightning's own SIGTERM handler, which ends the
    process without a save and with code 0, is replaced from `on_train_start` on; Lightning puts
    back what was there before it.
    """

    def __init__(self) -> None:
        self._pending: int | None = None
        self._is_training = False
        self._is_stopping = False
        self._outer: _Handlers = {}
        self._owner = os.getpid()

    def __enter__(self) -> Self:
        self._is_stopping = False
        self._outer = self._install()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _restore(self._outer)
        self._outer = {}

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over from Lightning's handlers, which it installed after every earlier hook.

        Raises:
            Interrupted: SIGTERM came while Lightning's handler stood alone.
        """
        self._pending, self._is_stopping, self._is_training = None, False, True
        self._install()
        if trainer.received_sigterm:
            raise Interrupted(signal.SIGTERM)

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Stop here if asked to, unless gradients are half accumulated.

        Raises:
            Interrupted: A signal came.
        """
        # the boundary before an epoch's first batch is on_train_epoch_start
        if batch_idx and batch_idx % trainer.accumulate_grad_batches == 0:
            self._stop_if_asked(trainer, "batch")

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop here if asked to.

        Raises:
            Interrupted: A signal came.
        """
        self._stop_if_asked(trainer, "epoch")

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The last boundary; from here on Lightning puts back the handlers that it found.

        Raises:
            Interrupted: A signal came.
        """
        self._stop_if_asked(trainer, "end")
        self._is_training = False

    @override
    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Keep the exit code if the failure came after a signal.

        Raises:
            Interrupted: The failure followed a signal, as when a signal to the whole process group
                also killed the loader's workers; the last checkpoint on disk stands.
        """
        self._is_training, signum = False, self._pending
        if signum is not None and not isinstance(exception, Interrupted | QatError):
            _log.warning("%s: stopped without a new save", signal.Signals(signum).name)
            pl_module.teardown(str(trainer.state.fn))  # as callbacks behind this one would do
            raise Interrupted(signum) from exception

    def stop_if_asked(self) -> None:
        """Stop a run between two trainings, if one of its processes was asked to; all call it.

        Raises:
            Interrupted: A signal came.
        """
        if signum := ranks.largest(self._pending or 0):
            raise Interrupted(signum)

    def _stop_if_asked(self, trainer: Trainer, boundary: Any) -> None:
        signum = ranks.largest(self._pending or 0)  # one process may be asked sooner than others
        if not signum:
            return
        self._is_stopping = True
        name = signal.Signals(signum).name
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, RunCheckpoint):
                callback.save(trainer, boundary)
        _log.warning("%s: stopped after step %d", name, trainer.global_step)
        raise Interrupted(signum)

    def _install(self) -> _Handlers:
        if threading.current_thread() is not threading.main_thread():
            return {}
        return {signum: signal.signal(signum, self._handle) for signum in _SIGNALS}

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        # loader workers inherit this handler; a Ctrl-C reaches them too and is the parent's matter
        if os.getpid() != self._owner or self._is_stopping:
            return
        self._is_stopping = True
        if not self._is_training:
            raise Interrupted(signum)
        self._pending = signum


def _restore(handlers: _Handlers) -> None:
    for signum, handler in handlers.items():
        if handler is not None:
            signal.signal(signum, handler)
