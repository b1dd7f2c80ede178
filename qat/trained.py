"""A trained network out of its run folder, for evaluation, as a teacher, or for export."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from qat.compose import conf_folder, instantiated, recomposed
from qat.errors import CheckpointError
from qat.lit.checkpoint_file import last_good, load
from qat.lit.data.module import ImageData
from qat.lit.data.registry import build_data
from qat.lit.restore import restore
from qat.run_spec import RunSpec
from qat.spec import QuantSpec
from qat.surgery import prepare


@dataclass(frozen=True, slots=True)
class Trained:
    """A network out of a run folder.

    Attributes:
        net: with hard weights, in eval mode.
        spec: of the run.
        data: its data module; nothing is read from disk yet.
        checkpoint: the file that the weights come from.
    """

    net: nn.Module
    spec: RunSpec
    data: ImageData
    checkpoint: Path


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
    trained = open_trained(Path(path), state=state)
    return trained.net, trained.spec.quant


def open_trained(
    folder: Path,
    *,
    state: Literal["selected", "last"] = "selected",
    checkpoint: Path | None = None,
) -> Trained:
    """As `load_trained`, with all that belongs to the network.

    Args:
        folder: run folder.
        state: the selected epoch, or the last one; the same for runs that select none.
        checkpoint: a checkpoint of the run, instead of a state.

    Raises:
        CheckpointError: as `load_trained`.
    """
    spec = recomposed(conf_folder(), folder)
    found = checkpoint or _newest(folder, spec, state)
    data = build_data(spec.data, seed=spec.seed)
    shape = {"num_classes": data.num_classes, "in_channels": data.channels}
    net: nn.Module = instantiated(spec.model, **shape, image_size=data.image_size)
    example = torch.zeros(2, data.channels, data.image_size, data.image_size)
    prepare(net, spec.quant, example=example)
    restore(net, spec.quant, load(found))
    return Trained(net.eval(), spec, data, found)


def is_run_folder(folder: Path) -> bool:
    """Whether a run has been started in this folder."""
    return (folder / ".hydra" / "overrides.yaml").is_file()


def _newest(folder: Path, spec: RunSpec, state: Literal["selected", "last"]) -> Path:
    selects = spec.distill is None or spec.distill.selection != "last"
    kept = "best" if state == "selected" and selects else "last"
    found = last_good(folder / "checkpoints" / kept)
    if found is None:
        raise CheckpointError(f"{folder} has no {state} checkpoint; has the run been trained?")
    return found
