"""Module modes: networks looked at in evaluation or training mode, and left as they were."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Any mode inside; every module's mode as before on exit."""
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside; every module's mode as before on exit."""
    with modes_kept(model):
        model.eval()
        yield


@contextmanager
def training_mode_without_traces(model: nn.Module) -> Iterator[None]:
    """Training mode inside; modes and buffers (BatchNorm statistics) as before on exit."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with modes_kept(model):
        model.train()
        try:
            yield
        finally:
            for name, buffer in model.named_buffers():
                buffer.copy_(buffers[name])
