"""Weights alone: a state to judge, to export and to start from, but not to train on."""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import LightningModule
from torch import Tensor

from qat.lit.resume.guards import refuse_non_finite


def weights_alone(module: LightningModule, **place: Any) -> dict[str, Any]:
    """A checkpoint of a module's weights, and of what the module itself adds to a checkpoint.

    A third to a half of a whole one: momentum, moments and counters of loops are not in it.

    Args:
        module: in training.
        place: entries for the checkpoint, as `global_step`.

    Raises:
        NonFiniteError: a weight is not finite.
    """
    checkpoint = {**place, "state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    refuse_non_finite(checkpoint)
    return checkpoint


def copied(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict that stays what it is while training moves on, in the host's memory.

    Entries that are one tensor (tied weights) are one copy, and one entry in a file.
    """
    copies: dict[Any, Tensor] = {}
    found = {}
    for name, tensor in state.items():
        key = tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()
        if key not in copies:
            copies[key] = tensor.detach().to("cpu", copy=True)
        found[name] = copies[key]
    return found
