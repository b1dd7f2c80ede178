"""Sampler: the order of the training samples, a function of (seed, epoch) alone."""

import hashlib
from collections.abc import Callable, Iterator

import torch
from torch.utils.data import Sampler

Key = tuple[int, int]
Position = tuple[int, int]


def derived_seed(*parts: int) -> int:
    """A 64-bit seed from some integers: the first 8 bytes of BLAKE2b of their decimal text.

    Equal on every machine and in every process (unlike `hash`), and without the correlations of
    seeds such as seed + epoch, where run 1 at epoch 0 would repeat run 0 at epoch 1.
    """
    text = " ".join(str(part) for part in parts).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


class EpochBatchSampler(Sampler[list[Key]]):
    """Batches of keys (epoch, index) whose order depends on (seed, epoch) only.

    No iterator state has to be saved: set to a position it goes on as if it had never stopped.
    Each pass takes the next epoch from its beginning, unless `set_position` or `locate` says
    otherwise; a pass counts once its first batch is drawn.

    Args:
        length: samples in the training part, >= 1.
        batch_size: samples in a batch, >= 1.
        seed: of the run.
        shuffle: false keeps the order of the data set in every epoch.
        drop_last: leave out the last batch of an epoch if it is incomplete.
        locate: asked at each `iter` for (epoch, batches done); None means: go on.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        *,
        seed: int,
        shuffle: bool = True,
        drop_last: bool = False,
        locate: Callable[[], Position | None] | None = None,
    ) -> None:
        self.length = length
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.drop_last = drop_last
        self._locate = locate
        self._next: Position = (0, 0)

    def set_position(self, epoch: int, batches_done: int) -> None:
        """Let the next `iter` start after `batches_done` batches of `epoch`, both from 0."""
        self._next = (epoch, batches_done)

    def order(self, epoch: int) -> list[int]:
        """All sample indices in the order of `epoch`."""
        if not self.shuffle:
            return list(range(self.length))
        generator = torch.Generator().manual_seed(derived_seed(self.seed, epoch))
        order: list[int] = torch.randperm(self.length, generator=generator).tolist()
        return order

    def __iter__(self) -> Iterator[list[Key]]:
        located = self._locate() if self._locate is not None else None
        return self._batches(*(located or self._next))

    def _batches(self, epoch: int, done: int) -> Iterator[list[Key]]:
        # with the first batch, not in `__iter__`: a loader with workers calls iter() twice
        self._next = (epoch + 1, 0)
        order = self.order(epoch)
        for batch in range(done, len(self)):
            start = batch * self.batch_size
            yield [(epoch, index) for index in order[start : start + self.batch_size]]

    def __len__(self) -> int:
        """Batches of a full epoch, also when the next `iter` starts in the middle of one."""
        full, rest = divmod(self.length, self.batch_size)
        return full + (rest > 0 and not self.drop_last)
