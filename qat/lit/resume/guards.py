"""Guards of a run: nothing non-finite is applied or saved, randomness depends on the step alone."""

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from qat.data.sampler import derived_seed
from qat.errors import CheckpointError, NonFiniteError, QatError
from qat.ranks import group as ranks
from qat.spec.lightning import CALLBACKS, WRONG_ANYWHERE


class FiniteGuard(Callback):
    """Stops a run before the update that a NaN or an infinity would spread through.

    Looks at the loss, which the module keeps as `last_loss` (a detached tensor), and at the
    gradients before clipping: one number, one wait for the device, per optimizer step. Under a
    gradient scaler (precision 16-mixed) infinite gradients are normal, the scaler skips those steps
    itself; then only the loss is looked at. Of several processes all stop where one has to.

    Args:
        skips: steps in a row that may be left out instead, without an update and with running
            statistics as they were before their batches; logged as train/skipped by epoch.
    """

    def __init__(self, skips: int = 0) -> None:
        self._skips = skips
        self._row = self._skipped = 0

    @override
    def state_dict(self) -> dict[str, Any]:
        """Steps left out in a row, and in this epoch."""
        return {"row": self._row, "skipped": self._skipped}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self._row, self._skipped = state_dict["row"], state_dict["skipped"]

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Remember what the batches of a step may spoil."""
        if self._skips and batch_idx % trainer.accumulate_grad_batches == 0:
            pl_module.remember()  # type: ignore[operator]

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the steps left out."""
        if self._skips:
            pl_module.log("train/skipped", float(self._skipped))
            self._skipped = 0

    @override
    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Check loss and gradients.

        Raises:
            NonFiniteError: One is not finite; the weights are those of the step before.
        """
        loss: Tensor | None = getattr(pl_module, "last_loss", None)
        grads = [] if trainer.scaler is not None else _gradients(pl_module)
        is_wrong = not _are_finite(grads if loss is None else [loss, *grads])
        if not ranks.largest(int(is_wrong)):
            self._row = 0
        elif self._row < self._skips:
            self._row, self._skipped = self._row + 1, self._skipped + 1
            pl_module.recall()  # type: ignore[operator]
            if trainer.scaler is None:  # which leaves out the step itself
                optimizer.zero_grad(set_to_none=True)
        else:
            found = ranks.gathered(_culprit(pl_module, loss) if is_wrong else "")
            raise NonFiniteError(
                f"step {trainer.global_step + 1}: {next(filter(None, found))}; the update was not "
                "made, lower the learning rate or check the data, then resume or start again"
            )


def _gradients(module: LightningModule) -> list[Tensor]:
    return [p.grad for p in module.parameters() if p.grad is not None]


def _are_finite(tensors: Sequence[Tensor]) -> bool:
    """Whether all entries are finite, by their sum, where no NaN or infinity ever cancels."""
    # reads each tensor once and vectorizes; isfinite or a maximum take ten times as long on a CPU
    sums = [tensor.detach().sum(dtype=torch.float32) for tensor in tensors]
    return not sums or bool(torch.stack(sums).sum().isfinite())


def _culprit(module: LightningModule, loss: Tensor | None) -> str:
    if loss is not None and not _are_finite([loss]):
        return f"the loss is {loss.item()}"
    for name, parameter in module.named_parameters():
        if parameter.grad is not None and not _are_finite([parameter.grad]):
            return f"the gradient of {name} is not finite"
    return "the sum of the gradients overflows"


def refuse_non_finite(checkpoint: Mapping[str, Any]) -> None:
    """Check that a checkpoint's weights, buffers and optimizer state are finite.

    Raises:
        NonFiniteError: One is not; the message names it.
    """
    for part in ("state_dict", "optimizer_states"):
        for name, tensor in _tensors(checkpoint.get(part, {}), part):
            if tensor.is_floating_point() and not _are_finite([tensor]):
                raise NonFiniteError(
                    f"{name} is not finite at step {checkpoint.get('global_step')}; nothing was "
                    "saved, resume from the last checkpoint with a lower learning rate"
                )


def refuse_complex(checkpoint: Mapping[str, Any]) -> None:
    """Check that a checkpoint's tensors are real: torch would take the real part, with a warning.

    Raises:
        CheckpointError: One is not; the message names it.
    """
    for part in ("state_dict", "optimizer_states"):
        for name, tensor in _tensors(checkpoint.get(part, {}), part):
            if tensor.is_complex():
                raise CheckpointError(f"{name} is complex, as no weight of ours; use an older one")


def _tensors(node: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(node, Tensor):
        yield name, node
    elif isinstance(node, Mapping):
        for key, child in node.items():
            yield from _tensors(child, f"{name}.{key}")
    elif isinstance(node, Sequence) and not isinstance(node, str):
        for index, child in enumerate(node):
            yield from _tensors(child, f"{name}.{index}")


class StatelessRandomness(Callback):
    """Seeds torch, numpy and `random` from (seed, rank, batch) before every batch.

    Dropout and batch-wise augmentation then depend on where the run stands and not on how it got
    there, so a resumed run needs no saved generator state.

    Args:
        seed: The run's seed.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Seed what the epoch's start may draw."""
        self._reseed(trainer, 0, trainer.current_epoch)

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Seed what this batch, and a validation after it, may draw."""
        ready = trainer.fit_loop.epoch_loop.batch_progress.total.ready
        self._reseed(trainer, 1, ready)

    def _reseed(self, trainer: Trainer, stream: int, count: int) -> None:
        value = derived_seed(self._seed, trainer.global_rank, stream, count)
        if trainer.strategy.root_device.type == "cpu":
            # torch.manual_seed also notes the seed, with a traceback, for a CUDA that may come
            torch.default_generator.manual_seed(value)
        else:
            torch.manual_seed(value)
        random.seed(value)
        np.random.seed(value % 2**32)


_THEIRS = ("lightning.pytorch.callbacks", "pytorch_lightning.callbacks")
_STRATEGIES = ("FSDPStrategy", "ModelParallelStrategy", "DeepSpeedStrategy")


def refuse_unsupported(trainer: L.Trainer) -> None:
    """Raise before anything runs if a callback has no place in a run, or weights are sharded.

    Raises:
        QatError: naming the callback or the strategy, and the cure.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        for base in type(callback).__mro__:
            is_theirs = base.__module__.startswith(_THEIRS)
            if is_theirs and base.__name__ in WRONG_ANYWHERE:
                raise QatError(f"{type(callback).__name__} {CALLBACKS[base.__name__][0]}")
    if type(trainer.strategy).__name__ in _STRATEGIES:
        raise QatError(
            f"{type(trainer.strategy).__name__} shards weights, and a scale needs whole "
            "tensors; use trainer.strategy=auto or ddp"
        )


class TeardownOnError(Callback):
    """Tears the module down after an error too; Lightning does so at a normal end only.

    An evaluation that is left open would be closed by the interpreter's end, which then changes
    weights that it has let go already: the process aborts.
    """

    @override
    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Call the module's own teardown."""
        pl_module.teardown(str(trainer.state.fn))
