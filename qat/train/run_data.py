"""Data of a run, held against what it began with, and large enough for what is asked of them."""

import math
from pathlib import Path

from qat.data.module import ImageData
from qat.errors import CheckpointError, SpecError
from qat.ranks import group as ranks
from qat.ranks.share import check_shares
from qat.spec.run import RunSpec
from qat.storage.checkpoint import checkpoints_by_step, load_last_good
from qat.storage.data_changes import data_changes, sentence
from qat.storage.data_record import DataRecord, read_record
from qat.train.build import prepared_data
from qat.train.fit import is_trained


def has_begun(folder: Path) -> bool:
    """Whether a run has trained already, so that its record of data stays what it is."""
    return bool(checkpoints_by_step(folder / "checkpoints" / "last"))


def data_of_run(spec: RunSpec, folder: Path) -> ImageData:
    """The data of a run; of one that goes on, the files of its parts stay in them.

    Files that came since are left out. Files that are gone, or others by now, are refused where
    they enter what is left of the run: its training, or its test alone.

    Args:
        spec: the run's options.
        folder: of the run.

    Raises:
        QatError: data are missing or a part is empty; they are not those that the run began with;
            or a share of them that is asked for is no batch.
    """
    before = read_record(folder) if has_begun(folder) else None
    data = prepared_data(spec, before=before)
    if before is not None:
        _check_record(before, data.record(), spec, folder)
    _check_shares(data, spec)
    return data


def _check_record(before: DataRecord, now: DataRecord, spec: RunSpec, folder: Path) -> None:
    changes = data_changes(before, now)
    if not changes:
        return
    what = f"the data are not those that the run began with: {sentence(changes)}"
    is_other = bool(changes.keys() & {"data", "classes"})
    is_trained_on = bool(changes.keys() & {"train", "validation"}) and not _is_trained(folder, spec)
    # of another number of images the order, and with it every step, would be another
    may_go_on = before.parts["train"].count == now.parts["train"].count and not is_other
    if is_other or (is_trained_on and not (may_go_on and "images" in spec.resume_allow)):
        allow = "; or allow it by resume_allow=[images], for a run that is not exact"
        raise CheckpointError(
            f"resume={folder}: {what}; bring those back, or begin a new run"
            f"{allow if may_go_on else ''}"
        )
    print(f"resume: {what}", flush=True)


def _is_trained(folder: Path, spec: RunSpec) -> bool:
    newest = load_last_good(folder / "checkpoints" / "last")
    return newest is not None and is_trained(*newest, spec)


def _check_shares(data: ImageData, spec: RunSpec) -> None:
    """Refuse a share of a part that comes to no batch: Lightning would say so at its end."""
    batches = {
        "train": data.batches_per_epoch,
        "val": data.batches_of(data.parts.validation),
        "test": data.batches_of(data.parts.test),
    }
    _check_ranks(data)
    for part, count in batches.items():
        share = spec.trainer.get(f"limit_{part}_batches")
        if isinstance(share, float) and int(count * share) == 0:
            raise SpecError(
                f"trainer.limit_{part}_batches={share:g} of {count} batches is none; use a number "
                f"of batches, without a point, or at least {math.ceil(1000 / count) / 1000:g}"
            )


def _check_ranks(data: ImageData) -> None:
    """Refuse parts that are too small to be shared by this many processes."""
    order, size = data.train_order(), ranks.size()
    check_shares(order.length, order.batch_size, size, keeps_last=not order.drop_last)
    for part, images in (("validation", data.parts.validation), ("test", data.parts.test)):
        if len(images) < size:
            raise SpecError(
                f"the {part} part has {len(images)} images for {size} processes; use at most "
                f"{len(images)} processes"
            )
