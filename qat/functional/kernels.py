"""Kernels: a pointwise function of tensors as one loop over their memory, made by Inductor.

Every function here is given tensors in one order of memory, as vectors: so one loop serves any
number of axes and any layout, and is compiled once per dtype. What differs from quantizer to
quantizer (levels, slopes) comes in as numbers in a tensor, not as constants, for the same reason.
Bools are kept out of memory: CPUs move them several times slower than an uint8.
"""

import functools
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

from qat.functional.runtime import runtime


def is_plain(x: Tensor) -> bool:
    """Whether x is a tensor with memory of its own that nobody traces, batches or watches."""
    return (
        not torch.compiler.is_compiling()  # asked first, as it looks at what dynamo does not trace
        and type(x) in (Tensor, nn.Parameter)
        and x.layout is torch.strided
        and not x.is_meta
        and not torch._C._get_tracing_state()
        and torch._C._functorch.peek_interpreter_stack() is None
        and not torch._C._functorch.is_legacy_batchedtensor(x)  # of is_grads_batched
        and _get_current_dispatch_mode() is None
    )


def fuses(x: Tensor, *others: Tensor) -> bool:
    """Whether a pass over x is a fused kernel's: asked for, possible, and not for a single number.

    A size of 1 would be compiled for itself; derivatives of derivatives, and float64 of x or of
    other tensors in the pass, go through eager operations.
    """
    return (
        runtime().kernels == "fused"
        and not torch.is_grad_enabled()
        and is_plain(x)
        and 1 < x.numel() < 2**31  # a GPU's kernel may count in 32 bits
        and not any(tensor.dtype == torch.float64 for tensor in (x, *others))
    )


class Fused:
    """A function of tensors as one loop, compiled by Inductor for any number of elements.

    It is compiled at its first call, for the dtypes, the device and the threads at hand, on vectors
    of a size that no other argument has; the machine's cache of Inductor keeps what was compiled.
    Called without gradients alone.

    Args:
        function: of vectors, or of matrices with a vector for their rows; keywords are numbers as
            tensors, or constants.
    """

    # of the axes of a sample: different, neither 0 nor 1, which are compiled for themselves, and so
    # large that Inductor gives the loop to all threads
    _SAMPLE = (8, 2**17)

    def __init__(self, function: Callable[..., Any]) -> None:
        functools.update_wrapper(self, function)
        self._function = function
        self._compiled: dict[tuple[Any, ...], Callable[..., Any]] = {}

    def over(self, x: Tensor, *others: Tensor, **rest: Any) -> Any:
        """What the function gives for tensors of one shape, read in the order of x's memory.

        Args:
            x: leads; its layout is that of the results.
            others: of x's shape.
            rest: the function's keywords; those that are None are left to their defaults.

        Returns:
            As the function: tensors of x's shape, and sums as they are.
        """
        x = dense(x)
        rest = {name: value for name, value in rest.items() if value is not None}
        found = self(vector(x), *(vector(laid_out_as(other, x)) for other in others), **rest)
        if isinstance(found, Tensor):
            return _shaped(found, x)
        return tuple(_shaped(part, x) for part in found)

    def __call__(self, *vectors: Tensor, **rest: Any) -> Any:
        """What the function gives for these vectors or matrices."""
        key = (torch.get_num_threads(), *map(_kind, vectors), *map(_kind, rest.values()))
        if key not in self._compiled:
            self._compiled[key] = self._made(vectors, rest)
        tensors = [value for value in rest.values() if isinstance(value, Tensor)]
        return self._compiled[key](*vectors, *tensors)

    def _made(self, vectors: tuple[Tensor, ...], rest: dict[str, Any]) -> Callable[..., Any]:
        from torch._inductor import standalone_compile
        from torch.fx.experimental.proxy_tensor import make_fx

        names = [name for name, value in rest.items() if isinstance(value, Tensor)]
        constants = {name: value for name, value in rest.items() if name not in names}

        def flat(*arguments: Tensor) -> Any:
            named = dict(zip(names, arguments[len(vectors) :], strict=True))
            return self._function(*arguments[: len(vectors)], **named, **constants)

        samples = [self._sample(x) for x in vectors] + [rest[name] for name in names]
        # autocast and hooks of whoever calls first are none of the kernel's
        with torch.no_grad(), torch.autocast(samples[0].device.type, enabled=False), _quiet():
            graph = make_fx(flat, tracing_mode="symbolic")(*samples)
            compiled = standalone_compile(
                graph,
                samples,
                dynamic_shapes="from_graph",
                options={"config_patches": _eager_numerics()},
            )
        return compiled

    def _sample(self, x: Tensor) -> Tensor:
        sizes = self._SAMPLE[-x.ndim :] if x.ndim else ()
        shape = [1 if n == 1 else size for n, size in zip(x.shape, sizes, strict=True)]
        return torch.zeros(shape, dtype=x.dtype, device=x.device)


def _eager_numerics() -> dict[str, bool]:
    """Options of Inductor by which a kernel rounds where eager operations round.

    Half precision at each operation; quotients on GPUs, which Triton approximates if not told.
    """
    from torch._inductor import config

    known = hasattr(getattr(config, "eager_numerics", None), "division_rounding")
    quotients = {"eager_numerics.division_rounding": True} if known else {}
    return {"emulate_precision_casts": True, **quotients}


def _kind(value: Any) -> Any:
    """What a kernel is compiled for."""
    if isinstance(value, Tensor):
        return value.dtype, value.device, *(n == 1 for n in value.shape)
    return value


@contextmanager
def _quiet() -> Iterator[None]:
    """A block in which torch does not warn of a CUDA toolkit without a GPU."""
    log = logging.getLogger("torch.utils.cpp_extension")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def has_no_versions() -> bool:
    """Whether what is made now could not know its codes, though products would ask for them.

    Codes hold while their tensor's version stands still, and inference mode's tensors have none.
    """
    is_traced = torch.compiler.is_compiling()  # asked first, by what dynamo does trace
    return (
        not is_traced and torch.is_inference_mode_enabled() and runtime().integer_forward != "off"
    )


def apply(function: type[torch.autograd.Function], x: Tensor, *arguments: Any) -> Any:
    """`function.apply(x, ...)`; without its look at signature and transforms where none is on."""
    if has_no_versions():
        with torch.inference_mode(False), torch.no_grad():
            return apply(function, x, *arguments)
    if is_plain(x):
        return super(torch.autograd.Function, function).apply(x, *arguments)  # type: ignore[misc]
    return function.apply(x, *arguments)


@functools.cache
def numbers(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Numbers for a kernel as a float32 tensor, which its loop reads at each place."""
    return torch.tensor(values, dtype=torch.float32, device=device)


def as_number(value: Tensor | float | None) -> Tensor | None:
    """A number as a tensor, which a kernel need not be compiled anew for."""
    return None if value is None else torch.as_tensor(value)


def times(x: Tensor, grad: Tensor) -> Tensor:
    """X * grad, in x's memory where that can be: under vmap gradients may be batched and x not."""
    return x.mul_(grad) if is_plain(grad) else x * grad


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the grids' arithmetic for values of a dtype: float32 at least."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _shaped(part: Tensor, x: Tensor) -> Tensor:
    # in place, as a gradient that is a view of something is never accumulated in place
    return part.as_strided_(x.shape, x.stride()) if part.ndim else part


def vector(x: Tensor) -> Tensor:
    """X in the order of its memory, which is dense: shape (numel,)."""
    return x.as_strided((x.numel(),), (1,))


def dense(x: Tensor) -> Tensor:
    """X if its memory is dense, else a copy of it whose memory is."""
    if x.is_contiguous() or x.stride() == torch.empty_like(x).stride():
        return x
    return x.contiguous()


def laid_out_as(x: Tensor, other: Tensor) -> Tensor:
    """X in the layout of `other`, which has its shape: a kernel reads both in one order."""
    if x.stride() == other.stride():
        return x
    return torch.empty_like(other, dtype=x.dtype).copy_(x)
