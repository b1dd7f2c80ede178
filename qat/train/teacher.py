"""Teacher networks: from a run folder, a checkpoint, or a pretrained name."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from qat.data.module import ImageData
from qat.errors import CheckpointError, SpecError
from qat.models.pretrained import Norm, pretrained
from qat.spec.run import RunSpec
from qat.storage.data_changes import data_changes, sentence
from qat.storage.data_record import read_record
from qat.storage.status import is_run_folder
from qat.train.build import Parts, build
from qat.train.fit import recorded_teacher
from qat.train.open_run import Trained, open_trained
from qat.train.targets import build_network
from qat.train.teacher_training import Train, ensure_teacher
from qat.train.weights import load_checkpoint, read_weights

_log = logging.getLogger(__name__)
FromData = Callable[[ImageData], tuple[nn.Module, str]]


def load_teacher(
    source: str, spec: RunSpec, data: ImageData, *, allow_targets: Sequence[str] = ()
) -> tuple[nn.Module, str]:
    """The network of a teacher for a student's task.

    Args:
        source: run folder (its selected epoch); a checkpoint inside one; any other checkpoint, of
            a network that `distill.teacher_model` or else `model` describes; torchvision/<name> or
            timm/<name>.
        spec: of the student's run.
        data: of the student's run.
        allow_targets: prefixes of the user's own that a `_target_` may start with.

    Returns:
        (network, where it comes from as a text for records).

    Raises:
        SpecError: the teacher was trained for another task.
        CheckpointError: nothing there, damaged, or weights that do not fit.
    """
    kind, _, name = source.partition("/")
    if spec.distill is not None and spec.distill.is_pretrained_name:
        net, norm = pretrained(kind, name)
        _check_norm(norm, data, source)
        return net, source
    path = Path(source)
    runs = [path] if path.is_dir() else filter(is_run_folder, path.absolute().parents)
    folder = next(iter(runs), None)
    if folder is None:
        return _from_weights(path, spec, data, allow_targets), source
    trained = open_trained(
        folder,
        checkpoint=None if path.is_dir() else path,
        allow_targets=allow_targets,
        key="distill.teacher",
    )
    _check_task(trained, data, source)
    _tell_changes(folder, data, source)
    return trained.net, str(trained.checkpoint)


def untrained_teacher(
    spec: RunSpec, data: ImageData, *, allow_targets: Sequence[str] = ()
) -> nn.Module:
    """The network of a teacher that is yet to be trained for a student's task."""
    model = (spec.distill.teacher_model if spec.distill else None) or spec.model
    return build_network(model, data, allow=allow_targets)


def _from_weights(
    path: Path, spec: RunSpec, data: ImageData, allow_targets: Sequence[str]
) -> nn.Module:
    """A network of our own description with weights from a file."""
    net = untrained_teacher(spec, data, allow_targets=allow_targets)
    try:
        load_checkpoint(net, read_weights(path, net), "the file")
    except CheckpointError as error:
        model = (spec.distill.teacher_model if spec.distill else None) or spec.model
        described = {key: value for key, value in model.items() if not key.startswith("_")}
        raise CheckpointError(
            f"distill.teacher={path} does not hold the weights of {described} for "
            f"{data.num_classes} classes and {data.channels} channels ({error}); describe its "
            "network by model@distill.teacher_model=NAME, or give a run folder"
        ) from error
    return net


def _check_task(trained: Trained, data: ImageData, source: str) -> None:
    """Refuse a teacher whose run had other classes or other images than the student's."""
    theirs, what = trained.data, f"distill.teacher={source} was trained on "
    facts = {
        "classes": (trained.classes, data.classes),
        "channels": (theirs.channels, data.channels),
        "image_size": (theirs.image_size, data.image_size),
        "normalisation": ((theirs.mean, theirs.std), (data.mean, data.std)),
    }
    for fact, (before, now) in facts.items():
        if before != now:
            raise SpecError(
                f"{what}data={theirs.options.name} with {fact} {_short(before)}, the student has "
                f"data={data.options.name} with {_short(now)}; train a teacher on the student's "
                "data (distill.teacher=null does), or change data"
            )


def _tell_changes(folder: Path, data: ImageData, source: str) -> None:
    """Say where the images that the student holds out are not those that the teacher did."""
    before = read_record(folder)
    if before is not None and before.name == data.options.name:
        changes = data_changes(before, data.record(), parts=("validation", "test"))
        if changes:
            _log.warning("distill.teacher=%s held out other images: %s", source, sentence(changes))


def _check_norm(norm: Norm, data: ImageData, source: str) -> None:
    """Refuse a teacher that wants pixels of another scale."""
    own = Norm(data.mean, data.std)
    if norm != own:
        raise SpecError(
            f"distill.teacher={source} was trained on pixels of {norm}, the student's "
            f"data={data.options.name} have {own}; choose a teacher of the same normalisation"
        )


def _short(value: object) -> str:
    text = str(value)
    count = f" ({len(value)})" if isinstance(value, tuple) else ""
    return text if len(text) <= 60 else f"{text[:57]}...{count}"


def teacher_of(config: Mapping[str, Any], spec: RunSpec, parts: Parts, *, train: Train) -> FromData:
    """Where the student's run gets its teacher from; trains one if there is none.

    Args:
        config: of the student's run, resolved.
        spec: the same, checked.
        parts: of the student's run.
        train: as `ensure_teacher`.
    """
    assert spec.distill is not None  # asked only then
    allow = tuple(config.get("allow_targets", ()))

    def untrained(data: Any) -> Any:
        return untrained_teacher(spec, data, allow_targets=allow)

    def rehearse() -> None:
        """Build the student with a teacher that has learned nothing: mistakes cost seconds."""
        build(spec, replace(parts, teacher=lambda data: (untrained(data), "new")))

    source = spec.distill.teacher or (spec.resume and recorded_teacher(Path(spec.resume)))
    if not source:
        source = str(ensure_teacher(config, spec, rehearse=rehearse, train=train))
    return lambda data: load_teacher(source, spec, data, allow_targets=allow)
