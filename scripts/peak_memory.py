"""Peak memory of one forward and backward pass, on a CPU or a GPU."""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def peak_bytes(loss: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor) -> int:
    """Most bytes that are held at a time, beyond x and y, by loss(x, y) and its gradient in x."""
    if x.is_cuda:
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        torch.autograd.grad(loss(x, y), x)
        return int(torch.cuda.max_memory_allocated()) - before
    with Held(x, y) as held:
        torch.autograd.grad(loss(x, y), x)
    return held.peak


class Held(TorchDispatchMode):
    """Bytes of all that operations returned and that is alive, and their peak.

    The allocator of the CPU keeps no such count. Scratch space inside an operation is not seen.
    """

    def __init__(self, *inputs: Tensor) -> None:
        super().__init__()
        self.alive = {x.untyped_storage().data_ptr() for x in inputs}
        self.bytes = self.peak = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run one operation and see what it returned."""
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._see(tensor.untyped_storage())
        return result

    def _see(self, storage: torch.UntypedStorage) -> None:
        place, size = storage.data_ptr(), storage.nbytes()
        if place in self.alive:
            return
        self.alive.add(place)
        self.bytes += size
        self.peak = max(self.peak, self.bytes)
        weakref.finalize(storage, self._forget, place, size)

    def _forget(self, place: int, size: int) -> None:
        self.alive.discard(place)
        self.bytes -= size
