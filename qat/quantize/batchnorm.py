"""BatchNorm re-estimation on the weights that are shown."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from qat.quantize.modes import modes_kept


@contextmanager
def reestimated_batchnorm(model: nn.Module, batches: Iterable[Tensor]) -> Iterator[None]:
    """Inside, running statistics are the plain average over `batches` with the present weights.

    Statistics gathered while weights were relaxed, or before the last flips, belong to other
    weights. On exit the running statistics are as before.

    Args:
        model: network whose parameters hold the weights to evaluate.
        batches: training images.
    """
    norms = _tracking(model)
    saved = [{name: b.clone() for name, b in norm.named_buffers()} for norm in norms]
    try:
        reestimate_batchnorm(model, batches)
        yield
    finally:
        for norm, buffers in zip(norms, saved, strict=True):
            for name, buffer in norm.named_buffers():
                buffer.copy_(buffers[name])


@torch.no_grad()
def reestimate_batchnorm(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Make running statistics the plain average over `batches` with the present weights, for good.

    Args:
        model: network whose parameters hold the weights to evaluate.
        batches: training images; not used by a network without running statistics.
    """
    norms = _tracking(model)
    if not norms:
        return
    with modes_kept(model), _averaging(norms):
        model.eval()  # only the normalisation layers gather; dropout stays off
        for norm in norms:
            norm.train()
        for images in batches:
            model(images)


def _tracking(model: nn.Module) -> list[_BatchNorm]:
    return [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]


@contextmanager
def _averaging(norms: Sequence[_BatchNorm]) -> Iterator[None]:
    """Statistics are cumulative averages from here on; the momenta are as before on exit."""
    momenta = [norm.momentum for norm in norms]
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
