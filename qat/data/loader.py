"""Data loaders that leave the global random state alone, and the place where training goes on."""

import os
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from qat.data.dataset import Sample
from qat.data.sampler import Position
from qat.functional.runtime import runtime
from qat.names import MemoryFormat


class PositionedLoader(DataLoader[Sample]):
    """A loader whose place follows from the trainer's counters, so that it has none to save.

    Lightning warns on every resume within an epoch unless a loader offers these two methods.
    """

    def state_dict(self) -> dict[str, Any]:
        """Nothing: see `training_position`."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""


def image_loader(
    dataset: Dataset[Sample], workers: int, *, seed: int, timeout: float = 0, **batching: Any
) -> DataLoader[Sample]:
    """A loader of batches (image, label), in the memory format of the runtime.

    Args:
        dataset: of single samples.
        workers: processes, 0 loads in this one.
        seed: of the loader's own generator; without one it draws from the global generator at
            each `iter`, so that looking at the data would change the training.
        timeout: seconds to wait for a batch of these processes; 0 for ever.
        batching: `batch_size`, or `batch_sampler`.
    """
    return PositionedLoader(
        dataset,
        num_workers=workers,
        persistent_workers=workers > 0,
        timeout=timeout if workers else 0,
        worker_init_fn=leave_group,
        pin_memory=torch.cuda.is_available(),
        collate_fn=partial(batched, memory_format=runtime().memory_format),
        generator=torch.Generator().manual_seed(seed),
        **batching,
    )


def batched(samples: Sequence[Sample], *, memory_format: MemoryFormat) -> Any:
    """Samples as a batch; a worker then also brings it to its memory format.

    Args:
        samples: of one shape.
        memory_format: of the images.
    """
    batch = default_collate(list(samples))
    return batch if memory_format == "contiguous" else in_channels_last(batch)


def in_channels_last(batch: Any) -> Any:
    """A batch whose images are in channels_last memory: C is the dimension of stride 1."""
    if isinstance(batch, Tensor) and batch.ndim == 4:
        return batch.contiguous(memory_format=torch.channels_last)
    if isinstance(batch, tuple | list):
        return type(batch)(map(in_channels_last, batch))
    return batch


def leave_group(worker: int) -> None:
    """Take a worker out of its parent's process group.

    A signal to the whole group (Ctrl-C, a scheduler's SIGTERM) would otherwise kill the workers
    first, and the run would fail before it could save. Ignoring the signals instead would make the
    interpreter wait for ever at its exit, where it ends its children by SIGTERM.
    """
    os.setpgrp()


def limited(batches: int, limit: float | None) -> int:
    """Batches that a trainer takes out of so many; its limit is a share (float) or a number (int).

    >>> limited(10, 0.25), limited(10, 1.0), limited(10, 1), limited(10, 30), limited(10, None)
    (2, 10, 1, 10, 10)
    """
    if limit is None:
        return batches
    return int(batches * limit) if isinstance(limit, float) else min(batches, limit)


def training_position(trainer: Any, batches: int) -> Position:
    """(epoch, batches done of it) where a Lightning trainer goes on.

    Counts *processed* batches: `completed` lags by one inside `on_train_batch_end`, where
    checkpoints are made. The epoch is that of the batches, which `trainer.current_epoch` is not
    in a checkpoint made at the end of an epoch.

    Args:
        trainer: a lightning Trainer, before or during fit. Its trackers are typed too narrowly
            to be typed here.
        batches: of a full epoch, >= 1.
    """
    loop = trainer.fit_loop
    batches = limited(batches, trainer.limit_train_batches)
    epochs, done = loop.epoch_progress.current, loop.epoch_loop.batch_progress.current.processed
    if epochs.processed == epochs.started or done >= batches:
        return epochs.started, 0
    return epochs.started - 1, done
