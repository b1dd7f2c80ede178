"""What is found in other people's modules: the network, a batch, the images in it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from qat.errors import QatError


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


def first_batch(trainer: Trainer) -> Any:
    """A batch of what the trainer is about to go through.

    Raises:
        QatError: there is none.
    """
    loops: dict[str, Any] = {
        "fit": trainer.fit_loop,
        "validate": trainer.validate_loop,
        "test": trainer.test_loop,
        "predict": trainer.predict_loop,
    }
    stage = str(trainer.state.fn.value)  # type: ignore[union-attr]
    loops[stage].setup_data()
    loaders: dict[str, Any] = {
        "fit": lambda: trainer.train_dataloader,
        "validate": lambda: trainer.val_dataloaders,
        "test": lambda: trainer.test_dataloaders,
        "predict": lambda: trainer.predict_dataloaders,
    }
    batch = next(iter(loaders[stage]()), None)
    if batch is None:
        raise QatError("there is no batch to show the network; give Quantize(example=...)")
    return batch


def _tensors(node: Any) -> Iterator[Tensor]:
    if isinstance(node, Tensor):
        yield node
    elif isinstance(node, Mapping):
        for child in node.values():
            yield from _tensors(child)
    elif isinstance(node, Sequence) and not isinstance(node, str):
        for child in node:
            yield from _tensors(child)


def images_in(batch: Any) -> Tensor | None:
    """The first tensor of a batch with four axes, or the first floating one, or None."""
    tensors = list(_tensors(batch))
    images = [t for t in tensors if t.ndim == 4] or [t for t in tensors if t.is_floating_point()]
    return images[0] if images else None
