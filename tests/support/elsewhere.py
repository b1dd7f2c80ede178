"""A device that no machine lacks: meta, whose tensors know where they lie and have no numbers.

A network that is moved there finds what CUDA would find: a tensor left on the CPU. Some operations
let one pass on meta, so `elsewhere` asks each for the devices of its operands by itself. What reads
a number (`.item()`, `float(x)`, `if x:`, `.cpu()`) raises, where CUDA would make the process wait;
and so does what CUDA refuses where every sum is to have its order.
torch's own FakeTensorMode says the same at twice the time, and refuses what CUDA takes: numbers of
the CPU, as tensors without axes, among tensors of the device.
"""

from contextlib import contextmanager, nullcontext
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

AWAY = torch.device("meta")
# these bring a tensor from one device to another
_COPIES = {"aten::_to_copy", "aten::copy_", "aten::_foreach_copy_"}


# what torch.use_deterministic_algorithms refuses on CUDA, by its own list, of what nets may use
_IN_ANY_ORDER = (
    "adaptive_avg_pool", "adaptive_max_pool", "fractional_max_pool", "avg_pool3d", "upsample",
    "reflection_pad", "grid_sampler",
)  # fmt: skip
_REFUSED = {"aten::put_", "aten::histc", "aten::bincount", "aten::median", "aten::scatter_reduce"}


class MixedDevicesError(AssertionError):
    """An operation was given tensors of two devices."""


class AnyOrderError(AssertionError):
    """An operation has no fixed order of its sums on CUDA."""


class _OneDevice(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        found = {t.device for t in tensors([args, kwargs]) if t.ndim}
        if len(found) > 1 and func._schema.name not in _COPIES:
            raise MixedDevicesError(f"{func} of tensors on {', '.join(sorted(map(str, found)))}")
        name = func._schema.name
        is_gradient = name.endswith("_backward") and any(part in name for part in _IN_ANY_ORDER)
        if is_gradient or name in _REFUSED:
            raise AnyOrderError(f"{func} is refused on CUDA with trainer.deterministic=true")
        return func(*args, **kwargs)


@contextmanager
def elsewhere():
    """A block in which no operation may mix devices."""
    # what turns autocast off asks for its dtype, which meta has not
    with _OneDevice(), patch("torch.autocast", lambda *_, **__: nullcontext()):
        yield


def tensors(node):
    """Every tensor of nested lists, tuples and dicts."""
    if isinstance(node, Tensor):
        yield node
    elif isinstance(node, dict | list | tuple):
        for child in node.values() if isinstance(node, dict) else node:
            yield from tensors(child)


def reading(number):
    """A block in which a number that is asked of a tensor is this one; else it raises."""
    kinds = {"__float__": float, "__int__": int, "__bool__": bool, "item": float}
    answers = {name: lambda *_, kind=kind: kind(number) for name, kind in kinds.items()}
    return patch.multiple(Tensor, **answers)
