"""Coded tensors: float tensors on few levels that know the codes of their levels.

A quantizer's output y is a lossless copy of its codes, a byte each. What an operation keeps of y
for its backward pass is then kept as codes, and turned into the same floats again when backward
asks: a convolution's input takes a quarter of its bytes, and these it shares with the quantizer. To
every operation y is an ordinary tensor; only what autograd stores is another.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qat.functional.kernels import Fused, dense, fuses, is_plain, numbers, vector
from qat.functional.runtime import runtime

# which hooks stand around ours, those of activation checkpointing for one, is not public; without
# an answer nothing is kept as codes
_autograd: Any = torch._C._autograd
_hooks_around = getattr(_autograd, "_top_saved_tensors_default_hooks", None)


@dataclass(frozen=True, slots=True)
class Levels:
    """Levels of bytes: value = step * clip(stride * index + offset, low, high).

    Attributes:
        step: 0-dim, of the dtype that the values were computed in.
        offset: code of index 0, before the clip.
        low: smallest code.
        high: largest code.
        stride: codes from one index to the next.
    """

    step: Tensor
    offset: int
    low: int
    high: int
    stride: int = 1

    def values(self, index: Tensor, dtype: torch.dtype) -> Tensor:
        """The levels in the layout of the index, bit for bit as the quantizer computed them.

        But for the sign of a zero, which no sum and no product with a finite number can tell.

        Args:
            index: uint8.
            dtype: of the result, to which the quantizer has rounded, too.
        """
        if fuses(index):
            index = dense(index)
            rule = numbers((self.stride, self.offset, self.low, self.high), index.device)
            flat: Tensor = _levels(vector(index), step=self.step, rule=rule, dtype=dtype)
            return flat.as_strided_(index.shape, index.stride())
        if self.stride == 1 and self.offset == self.low == 0:
            codes = index.clamp(max=self.high).to(self.step.dtype)  # bytes are clipped faster
        else:
            codes = index.to(self.step.dtype).mul_(self.stride).add_(self.offset)
            codes.clamp_(self.low, self.high)
        return codes.mul_(self.step).to(dtype)


@Fused
def _levels(index: Tensor, *, step: Tensor, rule: Tensor, dtype: torch.dtype) -> Tensor:
    codes = index.to(step.dtype) * rule[0] + rule[1]
    return (codes.clamp(rule[2], rule[3]) * step).to(dtype)


class Coded(Tensor):
    """Float tensor that knows its codes; made by `coded` alone.

    Operations see its values and return ordinary tensors, but for views of it, which know their
    codes too. Whatever writes into its memory ends that knowledge.

    Attributes:
        code: uint8 index of its levels, of its shape and layout.
        levels: what the index stands for, as long as the tensor `is_intact`.
    """

    code: Tensor
    levels: Levels
    _written: int

    @property
    def is_intact(self) -> bool:
        """Whether nothing was written into its memory since its codes were made."""
        with torch._C.DisableTorchFunctionSubclass():
            return self._version == self._written

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Apply `func`, keeping as codes what it saves of its coded operands."""
        if not all(issubclass(cls, kind) for kind in types):
            return NotImplemented
        with torch._C.DisableTorchFunctionSubclass():
            if func in _AS_PLAIN:
                args = (args[0].as_subclass(Tensor), *args[1:])
            if func in _AS_PLAIN or func.__name__ == "__get__" or not torch.is_grad_enabled():
                return func(*args, **(kwargs or {}))
            operands = [x for x in _operands((args, kwargs)) if x.is_intact]
            if not operands or not is_plain(operands[0].as_subclass(Tensor)):
                return func(*args, **(kwargs or {}))
            with _kept_as_codes(operands):
                result = func(*args, **(kwargs or {}))
            return _views_coded(result, operands)


# what copies, stores or shows the floats, or asks for them as an ordinary tensor
_AS_PLAIN = (Tensor.as_subclass, Tensor.__deepcopy__, Tensor.__reduce_ex__, Tensor.__repr__)


def coded(y: Tensor, index: Tensor, levels: Levels) -> Tensor:
    """Y as a tensor that knows its codes; y itself if the index lies otherwise in memory."""
    if y.stride() != index.stride() or not y.numel():
        return y
    result = y.as_subclass(Coded)
    result.code, result.levels, result._written = index, levels, y._version
    return result


def keeps_codes(x: Tensor) -> bool:
    """Whether the levels of x are to know their codes: in training, outside of any tracing."""
    return (
        runtime().saved == "codes"
        and _hooks_around is not None
        and torch.is_grad_enabled()
        and is_plain(x)
        and bool(_autograd._saved_tensors_hooks_is_enabled())
    )


@dataclass(frozen=True, slots=True)
class _Kept:
    """What stands in the graph for a saved tensor.

    Attributes:
        data: the tensor or its index, or what the hooks around ours made of it.
        unpack: of the hooks around ours, if there are any.
        levels: what the index stands for; None for a tensor as it is.
        dtype: of the tensor.
    """

    data: Any
    unpack: Callable[[Any], Tensor] | None
    levels: Levels | None
    dtype: torch.dtype


class _Packing:
    """Pack hook that keeps coded tensors and their views as codes, inside the hooks around it."""

    def __init__(self, operands: list[Coded]) -> None:
        assert _hooks_around is not None
        around: tuple[Any, Any] = _hooks_around(False) or (None, None)
        self.pack_around, self.unpack_around = around
        self.places: dict[int, Coded] = {x.untyped_storage().data_ptr(): x for x in operands}

    def __call__(self, tensor: Tensor) -> _Kept:
        x = self.places.get(tensor.untyped_storage().data_ptr())
        levels, data = None, tensor
        # an operation in place saves its result, in the memory of what it was given
        if x is not None and x.dtype == tensor.dtype and x.is_intact:
            levels, data = x.levels, _of_view(x.code, tensor)
        if self.pack_around is not None:
            data = self.pack_around(data)
        return _Kept(data, self.unpack_around, levels, tensor.dtype)

    def end(self) -> None:
        """Let go of the floats: the graph holds on to its hooks."""
        self.places.clear()
        self.pack_around = self.unpack_around = None


@contextmanager
def _kept_as_codes(operands: list[Coded]) -> Iterator[None]:
    """Within, autograd keeps the codes of these tensors and of their views, not their floats."""
    packing = _Packing(operands)
    try:
        with torch.autograd.graph.saved_tensors_hooks(packing, _unpacked):
            yield
    finally:
        packing.end()


def _unpacked(kept: _Kept) -> Tensor:
    data: Tensor = kept.unpack(kept.data) if kept.unpack else kept.data
    return kept.levels.values(data, kept.dtype) if kept.levels else data


def _of_view(index: Tensor, view: Tensor) -> Tensor:
    """The index of a view of the values' memory, which the index's own is laid out as."""
    return index.as_strided(view.shape, view.stride(), view.storage_offset())


def _operands(arguments: Any) -> Iterator[Coded]:
    """Coded tensors among arguments, also in lists and tuples."""
    if isinstance(arguments, Coded):
        yield arguments
    elif isinstance(arguments, tuple | list):
        for argument in arguments:
            yield from _operands(argument)
    elif isinstance(arguments, dict):
        yield from _operands(tuple(arguments.values()))


def _views_coded(result: Any, operands: list[Coded]) -> Any:
    """The result, its views of an operand's memory as coded tensors."""
    if isinstance(result, tuple | list) and type(result) in (tuple, list):
        return type(result)(_views_coded(part, operands) for part in result)
    if type(result) is not Tensor:
        return result
    for x in operands:
        if (
            result.dtype == x.dtype
            and result.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
            and x.is_intact
        ):
            view = result.as_subclass(Coded)
            view.code, view.levels = _of_view(x.code, result), x.levels
            view._written = result._version
            return view
    return result
