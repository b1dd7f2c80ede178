"""Process group of a training: this process's rank in it, and small agreements among all.

Without a group every function answers for the one process that there is. What is agreed on lies in
main memory, so that no GPU is waited for.
"""

from collections.abc import Iterable
from contextlib import suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from qat.errors import LostProcessError, QatError
from qat.ranks.place import Place

T = TypeVar("T")

# a rank may wait as long as another one trains a teacher or writes a report
_PATIENCE = timedelta(days=7)


# with the group that agreements go through, and where the processes have met
_joined: tuple[Place, Any, Any] | None = None


def join(place: Place, *, method: str, backend: str, attempt: int = 0) -> None:
    """Join the processes of a training; returns when all have come.

    Args:
        place: of this process.
        method: where they meet: env://, or tcp://HOST:PORT.
        backend: of the gradients: gloo, or nccl.
        attempt: how often a launcher has started these processes anew.
    """
    global _joined
    store = next(iter(rendezvous(method, place.rank, place.size)))[0]
    # where torchrun keeps its store, addresses of processes that have died are still in it
    store = PrefixStore(f"qat/{attempt}", store)
    dist.init_process_group(backend, store=store, rank=place.rank, world_size=place.size)
    _joined = place, dist.new_group(backend="gloo", timeout=_PATIENCE), store


def leave() -> None:
    """Leave the processes of a training, in order: all come here."""
    global _joined
    if _joined is not None:
        _joined = None
        dist.destroy_process_group()


def place() -> Place:
    """Where this process stands."""
    if _joined is not None:
        return _joined[0]
    if _is_in_group():  # of a trainer of the user's own
        return Place(rank=dist.get_rank(), size=dist.get_world_size())
    return Place()


def rank() -> int:
    """Number of this process, from 0."""
    return place().rank


def size() -> int:
    """Number of processes, 1 without a group."""
    return place().size


def is_first() -> bool:
    """Whether this process is the one that writes files and speaks."""
    return rank() == 0


def _is_in_group() -> bool:
    return dist.is_available() and dist.is_initialized()


def _group() -> Any:
    return _joined[1] if _joined is not None else dist.group.WORLD


def _device() -> str:
    is_nccl = _joined is None and dist.get_backend() == "nccl"
    return "cuda" if is_nccl else "cpu"


def largest(number: int) -> int:
    """The largest of the processes' numbers."""
    if size() == 1:
        return number
    found = torch.tensor(number, device=_device())
    dist.all_reduce(found, dist.ReduceOp.MAX, group=_group())
    return int(found)


def total(numbers: Tensor) -> Tensor:
    """The sum over all processes of tensors of one shape and dtype; on the CPU."""
    if size() == 1:
        return numbers
    found = numbers.detach().to(_device(), copy=True)
    dist.all_reduce(found, group=_group())
    return found.cpu()


def from_first(value: T) -> T:
    """The value of the first process, of plain objects; what others give does not matter."""
    if size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0, group=_group(), device=torch.device(_device()))
    return values[0]


def gathered(value: T) -> list[T]:
    """The values of all processes by rank, plain objects."""
    if size() == 1:
        return [value]
    values: list[Any] = [None] * size()
    dist.all_gather_object(values, value, group=_group())
    return values


def copy_from_first(tensors: Iterable[Tensor]) -> None:
    """Let tensors hold what they hold in the first process, in place, wherever they lie."""
    if size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor.detach(), src=0)


def wait() -> None:
    """Wait until all processes have come here."""
    if size() > 1:
        dist.all_reduce(torch.zeros(1, device=_device()), group=_group())


def tells() -> bool:
    """Whether this process is the first that has to tell of an end, so that one is told once."""
    if _joined is None:
        return True
    try:
        return bool(_joined[2].add("told", 1) == 1)
    except RuntimeError:  # of the process that kept the store, which has gone without a word
        return True


def leave_word(error: QatError) -> None:
    """Say why this process ends, for the first one to record; of several words the first stands."""
    if _joined is not None and size() > 1:
        with suppress(RuntimeError):  # of the process that kept the store
            if _joined[2].add("words", 1) == 1:
                kind = "lost" if isinstance(error, LostProcessError) else "failed"
                _joined[2].set("word", f"{kind} process {rank()}: {error}")


def word() -> QatError | None:
    """Why another process has ended, None if it did not say."""
    with suppress(RuntimeError):
        if _joined is not None and _joined[2].check(["word"]):
            kind, _, text = str(_joined[2].get("word").decode()).partition(" ")
            return LostProcessError(text) if kind == "lost" else QatError(text)
    return None


def is_loss(error: BaseException) -> bool:
    """Whether an error says that another process of the group is no longer there."""
    if size() == 1 or not isinstance(error, RuntimeError):
        return False
    # gloo raises plain RuntimeErrors, which name its source files
    return isinstance(error, dist.DistError) or "gloo" in str(error)
