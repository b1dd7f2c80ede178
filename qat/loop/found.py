"""The network in other people's modules."""

from collections.abc import Callable
from contextlib import ExitStack

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from qat.errors import QatError
from qat.quantize.modes import evaluating


def network_of(module: LightningModule, name: str | None) -> nn.Module:
    """The network in a module, without what torch.compile puts around it.

    Args:
        module: any.
        name: dotted name of the submodule; None takes the only child with parameters, or the whole
            module by its `forward` if there are several.

    Raises:
        QatError: there is no such part, or no telling which.
    """
    children = {
        n: child
        for n, child in module.named_children()
        if next(child.parameters(), None) is not None
    }
    if name is None and len(children) == 1:
        name = next(iter(children))
    if name is None:
        # by name, as there are two packages of it
        if type(module).forward.__qualname__ == "LightningModule.forward":
            raise QatError(
                f"{type(module).__name__} has no forward and {len(children)} parts with "
                f"parameters ({', '.join(children)}); name one: Quantize(module=...)"
            )
        return module
    found: nn.Module | None = dict(module.named_modules()).get(name)
    if found is None:
        raise QatError(
            f"Quantize(module={name!r}): {type(module).__name__} has no such part; it has "
            f"{', '.join(children) or 'none with parameters'}"
        )
    inner: nn.Module = getattr(found, "_orig_mod", found)
    return inner


def unused_parts(module: nn.Module, example: Tensor) -> list[str]:
    """Children with weights that a module's `forward` does not run: teachers, losses, averages.

    Args:
        module: with children.
        example: what enters it.
    """
    children = {
        name: child
        for name, child in module.named_children()
        if any(p.ndim > 1 for p in child.parameters())
    }
    seen: set[str] = set()
    with ExitStack() as hooks, evaluating(module), torch.no_grad():
        for name, child in children.items():
            for inner in child.modules():
                handle = inner.register_forward_pre_hook(_noting(seen, name))
                hooks.callback(handle.remove)
        module(example)
    return [name for name in children if name not in seen]


def _noting(seen: set[str], name: str) -> Callable[..., None]:
    return lambda *_: seen.add(name)
