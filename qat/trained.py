"""A trained network out of its run folder, for evaluation, as a teacher, or for export."""

from pathlib import Path
from typing import Literal

import torch
from torch import nn

from qat.compose import conf_folder, instantiated, recomposed
from qat.errors import CheckpointError
from qat.lit.checkpoint_file import last_good, load
from qat.lit.data.registry import build_data
from qat.lit.restore import restore
from qat.spec import QuantSpec
from qat.surgery import prepare


def load_trained(
    path: str | Path, *, state: Literal["selected", "last"] = "selected"
) -> tuple[nn.Module, QuantSpec]:
    """The network of a run with hard weights, in eval mode.

    The config is composed anew from our conf/ with the run's overrides and compared with the one
    that the run recorded; nothing that is read from the folder is instantiated.

    Args:
        path: run folder.
        state: the epoch selected on validation, or the last one.

    Returns:
        (network, the options it was prepared with).

    Raises:
        CheckpointError: no run folder, no such checkpoint, a damaged one, or a config that this
            version of qat composes differently.
    """
    folder = Path(path)
    spec = recomposed(conf_folder(), folder)
    found = last_good(folder / "checkpoints" / {"selected": "best", "last": "last"}[state])
    if found is None:
        raise CheckpointError(f"{folder} has no {state} checkpoint; has the run been trained?")
    data = build_data(spec.data, seed=spec.seed)
    shape = {"num_classes": data.num_classes, "in_channels": data.channels}
    net: nn.Module = instantiated(spec.model, **shape, image_size=data.image_size)
    example = torch.zeros(2, data.channels, data.image_size, data.image_size)
    prepare(net, spec.quant, example=example)
    restore(net, spec.quant, load(found))
    return net.eval(), spec.quant
