"""Samplers: the order of the training samples, a function of (seed, epoch) alone; the fixed one.

Batches are those of the whole training, whatever the number of processes (ranks) that share them.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.utils.data import Sampler

from qat.ranks.share import share

# (epoch, index); of an image that was there before in its epoch also how often
Key = tuple[int, ...]
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
        batch_size: samples in a batch of all ranks together, >= 1.
        seed: of the run.
        shuffle: false keeps the order of the data set in every epoch.
        balance: labels (N,), int64, if each class is to be drawn equally often; see
            `balanced_order`.
        drop_last: leave out the last batch of an epoch if it is incomplete.
        locate: asked at each `iter` for (epoch, batches done); None means: go on.
        rank: whose share of each batch is given, 0 .. ranks - 1.
        ranks: that share the batches.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        *,
        seed: int,
        shuffle: bool = True,
        balance: Tensor | None = None,
        drop_last: bool = False,
        locate: Callable[[], Position | None] | None = None,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self.length = length
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.balance = balance
        self.drop_last = drop_last
        self.rank, self.ranks = rank, ranks
        self._locate = locate
        self._next: Position = (0, 0)

    def set_position(self, epoch: int, batches_done: int) -> None:
        """Let the next `iter` start after `batches_done` batches of `epoch`, both from 0."""
        self._next = (epoch, batches_done)

    def order(self, epoch: int) -> list[int]:
        """All sample indices in the order of `epoch`, some more than once if it is balanced."""
        if not self.shuffle:
            return list(range(self.length))
        generator = torch.Generator().manual_seed(derived_seed(self.seed, epoch))
        if self.balance is not None:
            return balanced_order(self.balance, generator)
        order: list[int] = torch.randperm(self.length, generator=generator).tolist()
        return order

    def __iter__(self) -> Iterator[list[Key]]:
        located = self._locate() if self._locate is not None else None
        return self._batches(*(located or self._next))

    def _batches(self, epoch: int, done: int) -> Iterator[list[Key]]:
        # with the first batch, not in `__iter__`: a loader with workers calls iter() twice
        self._next = (epoch + 1, 0)
        keys = _keys(epoch, self.order(epoch), may_repeat=self.balance is not None)
        for batch in range(done, len(self)):
            start = batch * self.batch_size
            yield share(keys[start : start + self.batch_size], self.rank, self.ranks)

    def size_of(self, batch: int) -> int:
        """Samples in a batch of an epoch, counted from 0, of all ranks together."""
        return min(self.batch_size, self.length - batch * self.batch_size)

    def __len__(self) -> int:
        """Batches of a full epoch, also when the next `iter` starts in the middle of one."""
        full, rest = divmod(self.length, self.batch_size)
        return full + (rest > 0 and not self.drop_last)


class FixedBatchSampler(Sampler[list[int]]):
    """Batches of indices in the order of the data set, each sample once among all ranks.

    Args:
        length: samples.
        batch_size: samples in a batch of all ranks together, >= 1.
        rank: whose share of each batch is given, 0 .. ranks - 1.
        ranks: that share the batches.
    """

    def __init__(self, length: int, batch_size: int, *, rank: int = 0, ranks: int = 1) -> None:
        self.length, self.batch_size = length, batch_size
        self.rank, self.ranks = rank, ranks

    def __iter__(self) -> Iterator[list[int]]:
        for start in range(0, self.length, self.batch_size):
            stop = min(start + self.batch_size, self.length)
            own = share(range(start, stop), self.rank, self.ranks)
            if own:  # the last batch may have fewer samples than there are ranks
                yield own

    def __len__(self) -> int:
        full, rest = divmod(self.length, self.batch_size)
        return full * (self.batch_size > self.rank) + (rest > self.rank)


def members(labels: Tensor) -> list[Tensor]:
    """Indices of the images of each class that has some.

    >>> members(torch.tensor([2, 0, 2]))
    [tensor([1]), tensor([0, 2])]
    """
    ends = labels.bincount().cumsum(0)[:-1].tolist()
    return [own for own in labels.argsort(stable=True).tensor_split(ends) if len(own)]


def balanced_order(labels: Tensor, generator: torch.Generator) -> list[int]:
    """N indices in random order, in which every class comes equally often, up to one.

    The images of a class take turns: none comes a second time before all of them have come once.

    Args:
        labels: (N,), int64; a class without an image has no part in it.
        generator: what is drawn depends on it alone.
    """
    classes = members(labels)
    share, rest = divmod(len(labels), len(classes))
    more = set(torch.randperm(len(classes), generator=generator)[:rest].tolist())
    drawn = []
    for number, own in enumerate(classes):
        wanted = share + (number in more)
        turns = [
            own[torch.randperm(len(own), generator=generator)] for _ in range(0, wanted, len(own))
        ]
        drawn.append(torch.cat([own[:0], *turns])[:wanted])
    every = torch.cat(drawn)
    order: list[int] = every[torch.randperm(len(every), generator=generator)].tolist()
    return order


def _keys(epoch: int, order: list[int], *, may_repeat: bool) -> list[Key]:
    """The key of each sample; what comes again is numbered, and so augmented anew."""
    if not may_repeat:
        return [(epoch, index) for index in order]
    seen: Counter[int] = Counter()
    keys: list[Key] = []
    for index in order:
        keys.append((epoch, index, seen[index]) if seen[index] else (epoch, index))
        seen[index] += 1
    return keys
