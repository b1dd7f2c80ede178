"""Trained network out of its run folder, for evaluation, as a teacher, or for export."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from qat.compose import opened
from qat.data.module import ImageData, preprocessing_of
from qat.data.registry import build_data
from qat.errors import CheckpointError
from qat.models.by_name import architecture_of
from qat.quantize.plan import Plan, resolve
from qat.quantize.prepare import enable_quantizers, prepare
from qat.spec.header import Header, Preprocessing
from qat.spec.quant import QuantSpec
from qat.spec.run import RunSpec
from qat.storage.checkpoint import checkpoints_by_step, last_good, load
from qat.storage.provenance import versions
from qat.storage.reading import parsing
from qat.storage.run_files import read_json
from qat.train.targets import build_network
from qat.train.weights import is_of_run, restore


@dataclass(frozen=True, slots=True)
class Trained:
    """A network out of a run folder.

    Attributes:
        net: with hard weights (the float ones of a warm start), in eval mode.
        plan: of its layers.
        spec: of the run.
        data: its data module; nothing is read from disk yet.
        classes: names of the classes that the run had, by label.
        checkpoint: the file that the weights come from.
        is_float: whether it is of the float warm start, its quantizers disabled.
        allow_targets: prefixes of the user's own under which it was opened.
    """

    net: nn.Module
    plan: Plan
    spec: RunSpec
    data: ImageData
    classes: tuple[str, ...]
    checkpoint: Path
    is_float: bool
    allow_targets: tuple[str, ...] = ()

    @property
    def preprocessing(self) -> Preprocessing:
        """Of its images."""
        return preprocessing_of(self.data, self.classes)

    def header(self) -> Header:
        """What a file of this network says of itself; what is measured at export comes later."""
        return Header(
            quant=self.spec.quant,
            architecture=architecture_of(self.spec.model),
            preprocessing=self.preprocessing,
            data=self.spec.data.name,
            split=self.spec.data.split,
            val_share=self.spec.data.val_share,
            test_share=self.spec.data.test_share,
            versions=versions(),
        )

    def new_network(self) -> nn.Module:
        """The run's float network with new weights, for networks that files cannot name."""
        allow, count = self.allow_targets, len(self.classes)
        return build_network(self.spec.model, self.data, num_classes=count, allow=allow)


def load_trained(
    path: str | Path,
    *,
    state: Literal["selected", "last"] = "selected",
    allow_targets: Sequence[str] = (),
) -> tuple[nn.Module, QuantSpec]:
    """The network of a run with hard weights, in eval mode.

    The run is opened from the config that it recorded; options that came later have their defaults,
    and a `_target_` in it must be one that qat's own configs may name.

    Args:
        path: run folder.
        state: the epoch selected on validation, or the last one.
        allow_targets: further prefixes that a `_target_` may start with, e.g. "mypackage.".

    Returns:
        (network, the options it was prepared with).

    Raises:
        CheckpointError: no run folder, no such checkpoint, a damaged one, or a config that this
            version of qat does not read.
    """
    trained = open_trained(Path(path), state=state, allow_targets=allow_targets)
    return trained.net, trained.spec.quant


def open_trained(
    folder: Path,
    *,
    state: Literal["selected", "last"] = "selected",
    checkpoint: Path | None = None,
    allow_targets: Sequence[str] = (),
    key: str = "path",
) -> Trained:
    """As `load_trained`, with all that belongs to the network.

    Args:
        folder: run folder.
        state: the selected epoch, or the last one; the same for runs that select none.
        checkpoint: a checkpoint of the run, instead of a state.
        allow_targets: as `load_trained`.
        key: what named the folder, for messages.

    Raises:
        CheckpointError: as `load_trained`.
    """
    spec = opened(folder, allow_targets=allow_targets, key=key)
    found = checkpoint or _newest(folder, spec, state)
    data = build_data(spec.data, seed=spec.seed)
    classes = _classes(folder, data)
    net = build_network(spec.model, data, num_classes=len(classes), allow=allow_targets)
    example = torch.zeros(2, data.channels, data.image_size, data.image_size)
    prepare(net, spec.quant, example=example)
    plan = resolve(net, spec.quant)
    content = load(found)
    with parsing(f"checkpoint {found}", "use another"):
        is_float = is_of_run(content) and not content.get("qat", {}).get("is_quantized")
    weights: Literal["latent", "hard"] = "latent" if is_float else "hard"
    restore(net, plan, content, weights=weights, name=f"checkpoint {found}")
    enable_quantizers(net, not is_float)
    return Trained(net.eval(), plan, spec, data, classes, found, is_float, tuple(allow_targets))


def _classes(folder: Path, data: ImageData) -> tuple[str, ...]:
    """As the run recorded them: its images may be elsewhere by now."""
    with suppress(CheckpointError, KeyError, TypeError):
        return tuple(str(name) for name in read_json(folder / "summary.json")["classes"])
    return data.classes


def _newest(folder: Path, spec: RunSpec, state: Literal["selected", "last"]) -> Path:
    selects = spec.distill is None or spec.distill.selection != "last"
    kept = "best" if state == "selected" and selects else "last"
    found = last_good(folder / "checkpoints" / kept)
    if found is None:
        other, part = ("last", "last") if kept == "best" else ("selected", "best")
        has_other = checkpoints_by_step(folder / "checkpoints" / part)
        cure = f"use state={other}" if has_other else "train it; sweep.keep=none deletes them"
        raise CheckpointError(f"{folder} has no {state} checkpoint; {cure}")
    return found
