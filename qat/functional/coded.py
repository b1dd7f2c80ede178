"""Coded tensors: float tensors on few levels that know the codes of their levels.

A quantizer's output y is a lossless copy of its codes, a byte each. What an operation keeps of y
for its backward pass is then kept as codes, and turned into the same floats again when backward
asks: a convolution's input takes a quarter of its bytes, and these it shares with the quantizer. To
every operation y is an ordinary tensor; only what autograd stores is another.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qat.functional.kernels import is_plain
from qat.functional.levels import Levels
from qat.functional.products import Known, is_product, product
from qat.functional.runtime import runtime

# which hooks stand around ours, those of activation checkpointing for one, is not public; without
# an answer nothing is kept as codes
_autograd: Any = torch._C._autograd
_hooks_around = getattr(_autograd, "_top_saved_tensors_default_hooks", None)


class _Watch:
    """Whether the memory of coded tensors can only be written to where versions count it."""

    def __init__(self) -> None:
        self.is_on = True


class Coded(Tensor):
    """Float tensor that knows its codes; made by `coded` alone.

    Operations see its values and return ordinary tensors, but for views of it, which know their
    codes too. Whatever writes into its memory, or takes it where no one sees what is written, ends
    that knowledge.

    Attributes:
        code: uint8 index of its levels, of its shape and layout.
        levels: what the index stands for, as long as the tensor `is_intact`.
        total: 0-dim sum of its values where that is known, NaN if any of them is, else None.
    """

    code: Tensor
    levels: Levels
    total: Tensor | None
    _written: int = -1
    _watch: _Watch

    @property
    def is_intact(self) -> bool:
        """Whether nothing was written into its memory since its codes were made."""
        with torch._C.DisableTorchFunctionSubclass():
            return self._version == self._written and self._watch.is_on

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Apply `func`, keeping as codes what it saves of its coded operands."""
        kwargs = kwargs or {}
        if torch.compiler.is_compiling():
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        if not all(issubclass(cls, kind) for kind in types):
            return func(*_ordinary(args), **_ordinary(kwargs))
        if func in _ORDINARY:
            return getattr(_ordinary(args[0]), func.__name__)(*args[1:], **kwargs)
        if func in _BACKWARD:
            args = (_ordinary(args[0]), *args[1:])
            if not any(True for _ in _operands((args, kwargs))):
                return func(*args, **kwargs)  # with everything as it is outside of here
        with torch._C.DisableTorchFunctionSubclass():
            return _applied(func, args, kwargs)


def _applied(func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """`func` of coded tensors, which it sees as ordinary ones."""
    is_read = func.__name__ == "__get__" and func not in _VIEWS
    if func in _UNWATCHED:
        args[0]._watch.is_on = False
    if is_read or func in (*_UNWATCHED, *_BACKWARD):
        return func(*args, **kwargs)
    operands = [x for x in _operands((args, kwargs)) if x.is_intact]
    if not operands or not is_plain(operands[0].as_subclass(Tensor)):
        return func(*args, **kwargs)
    keeps = torch.is_grad_enabled() and runtime().saved == "codes"
    with _kept_as_codes(operands) if keeps else nullcontext():
        if is_product(func) and (y := product(func, args, kwargs, _known)) is not NotImplemented:
            return y
        return _views_coded(func(*args, **kwargs), operands)


def _known(x: Tensor) -> Known | None:
    """What a tensor that knows its codes knows."""
    return Known(x.code, x.levels, x.total) if isinstance(x, Coded) and x.is_intact else None


_data: Any = Tensor.data
# what copies, stores or shows the floats, or asks for them as an ordinary tensor
_ORDINARY = (Tensor.as_subclass, Tensor.__deepcopy__, Tensor.__reduce_ex__, Tensor.__repr__)
# what goes back through the graph, and calls whatever stands in it
_BACKWARD = (torch.autograd.grad, torch.autograd.backward, Tensor.backward)
# what hands out memory without a version that counts what is written
_UNWATCHED = (_data.__get__, _data.__set__, Tensor.numpy, Tensor.__dlpack__, Tensor.set_)
_VIEWS = tuple(getattr(Tensor, name).__get__ for name in ("T", "mT", "H", "mH"))


def uncoded(x: Tensor) -> Tensor:
    """X as an ordinary tensor."""
    return x.as_subclass(Tensor) if isinstance(x, Coded) else x


def _ordinary(arguments: Any) -> Any:
    """Arguments with ordinary tensors in place of coded ones; a parameter stays a parameter."""
    if isinstance(arguments, Coded):
        with torch._C.DisableTorchFunctionSubclass():
            if not arguments.is_leaf:
                with torch.enable_grad():  # still of the graph, when backward goes on from it
                    return arguments.as_subclass(Tensor)
            leaf = arguments.detach().as_subclass(Tensor)
            if getattr(arguments, "_is_param", False):
                return nn.Parameter(leaf, arguments.requires_grad)
            return leaf.requires_grad_(arguments.requires_grad)
    if type(arguments) in (tuple, list):
        return type(arguments)(map(_ordinary, arguments))
    if type(arguments) is dict:
        return {name: _ordinary(value) for name, value in arguments.items()}
    return arguments


def coded(y: Tensor, index: Tensor, levels: Levels, total: Tensor | None = None) -> Tensor:
    """Y as a tensor that knows its codes; y itself if the index lies otherwise in memory."""
    is_alike = y.stride() == index.stride() and y.storage_offset() == index.storage_offset() == 0
    if not is_alike or not y.numel() or y.is_inference():
        return y
    return _marked(y.as_subclass(Coded), index, levels, _Watch(), total)


def _marked(
    x: Coded, index: Tensor, levels: Levels, watch: _Watch, total: Tensor | None = None
) -> Coded:
    x.code, x.levels, x._watch, x.total = index, levels, watch, total
    with torch._C.DisableTorchFunctionSubclass():
        x._written = x._version
    return x


def keeps_codes(x: Tensor) -> bool:
    """Whether the levels of x are to know their codes, outside of any tracing.

    In training, where they are kept as codes or multiplied as such; in evaluation for the latter.
    """
    options = runtime()
    if not torch.is_grad_enabled():
        return options.integer_forward != "off" and is_plain(x)
    is_of_use = (
        options.saved == "codes"
        or options.integer_forward != "off"
        or options.backward != "float32"
    )
    return (
        is_of_use
        and _hooks_around is not None
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
        self.places: dict[int | None, Coded] = {_memory(x): x for x in operands}

    def __call__(self, tensor: Tensor) -> _Kept:
        x = self.places.get(_memory(tensor))
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
    memory = _memory(result)
    for x in operands:
        if memory == _memory(x) and result.dtype == x.dtype and x.is_intact:
            view, total = result.as_subclass(Coded), None
            if result.numel() == x.numel():
                total = x.total  # of the same values, but for an expanded view
            return _marked(view, _of_view(x.code, result), x.levels, x._watch, total)
    return result


def _memory(x: Tensor) -> int | None:
    """Which memory a tensor lies in, if it is dense numbers in memory at all."""
    return x.untyped_storage()._cdata if x.layout is torch.strided else None
