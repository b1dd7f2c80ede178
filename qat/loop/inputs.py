"""What enters the network of other people's modules: a batch, as their steps get it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from qat.errors import QatError


def first_batch(trainer: Trainer) -> Any:
    """A batch of what the trainer is about to go through, which goes through it all the same.

    Random numbers that are drawn for it are drawn again: of torch, numpy and Python, and of the
    generators of loaders and samplers. An iterable that begins anew for nobody loses the batch.

    Raises:
        QatError: there is none.
    """
    loop: Any
    stage = str(trainer.state.fn.value)  # type: ignore[union-attr]
    if stage == "fit":
        loop = trainer.fit_loop
        loop.setup_data()
        loaders = trainer.train_dataloader
    else:
        loop = {
            "validate": trainer.validate_loop,
            "test": trainer.test_loop,
            "predict": trainer.predict_loop,
        }[stage]
        loop.setup_data()
        combined = loop._combined_loader
        loaders = combined.flattened[0] if combined is not None and combined.flattened else None
    with isolate_rng():
        batch = _first(loaders)
    if batch is None:
        raise QatError("there is no batch to show the network; give Quantize(example=...)")
    return batch


def _first(loaders: Any) -> Any:
    """The first batch of a loader, or of each of several, in the form in which they are given."""
    if isinstance(loaders, Mapping):
        return {key: _first(child) for key, child in loaders.items()}
    if isinstance(loaders, list | tuple):
        return [_first(child) for child in loaders]
    if loaders is None:
        return None
    sampler = getattr(loaders, "sampler", None)
    holders = (loaders, sampler, getattr(getattr(loaders, "batch_sampler", None), "sampler", None))
    found = [getattr(holder, "generator", None) for holder in holders]
    generators = {id(g): g for g in found if isinstance(g, torch.Generator)}
    states = {key: generator.get_state() for key, generator in generators.items()}
    batch = next(iter(loaders), None)
    for key, generator in generators.items():
        generator.set_state(states[key])
    return batch


def arrived(module: LightningModule, batch: Any, device: torch.device) -> Any:
    """A batch as the module's steps get it: moved and converted by its hooks and the precision."""
    batch = module.trainer.precision_plugin.convert_input(batch)
    return module._apply_batch_transfer_handler(batch, device=device, dataloader_idx=0)


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
