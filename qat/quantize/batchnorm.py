"""BatchNorm re-estimation on the weights that are shown."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def reestimated_batchnorm(model: nn.Module, batches: Iterable[Tensor]) -> Iterator[None]:
    """Inside, running statistics are the plain average over `batches` with the present weights.

    Statistics gathered while weights were relaxed, or before the last flips, belong to other
    weights. On exit the running statistics are as before.

    Args:
        model: network whose parameters hold the weights to evaluate.
        batches: training images.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    saved = [{name: b.clone() for name, b in norm.named_buffers()} for norm in norms]
    momenta = [norm.momentum for norm in norms]
    modes = {module: module.training for module in model.modules()}
    model.eval()  # only the normalisation layers gather; dropout stays off
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative average
        norm.train()
    try:
        with torch.no_grad():
            for images in batches:
                model(images)
        _restore_modes(norms, momenta, modes)
        yield
    finally:
        _restore_modes(norms, momenta, modes)
        for norm, buffers in zip(norms, saved, strict=True):
            for name, buffer in norm.named_buffers():
                buffer.copy_(buffers[name])


def _restore_modes(
    norms: list[_BatchNorm], momenta: list[float | None], modes: dict[nn.Module, bool]
) -> None:
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    for module, mode in modes.items():
        module.training = mode
