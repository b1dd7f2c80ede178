"""Record of data: what is written down of the images of a run, and parts held to it."""

import hashlib
import json
import os
from dataclasses import replace
from typing import cast

import numpy as np
import torch

from qat.data.dataset import RawImages, fingerprint
from qat.data.image_files import FileImages
from qat.data.split import Parts
from qat.data.unlabelled.mixed import LabelsRemoved, Mixed
from qat.errors import DataError
from qat.storage.data_record import MOST_FILES, PARTS, DataRecord, PartRecord, class_hashes


def record_of(
    parts: Parts, *, name: str, split: str, classes: tuple[str, ...], most: int = MOST_FILES
) -> DataRecord:
    """What tells these parts from others: files by name, label and size, else counts.

    The label of an image without labels is not read.

    Args:
        parts: of the run.
        name: of the data set.
        split: rule of its split.
        classes: their names, by label.
        most: files of all parts that are kept by name; of more each class has a hash.
    """
    images = dict(zip(PARTS, (parts.train, parts.validation, parts.test), strict=True))
    files = sum(len(part) for part in images.values() if _files_of(part))
    kept = {title: _part(part, classes, by_name=files <= most) for title, part in images.items()}
    return DataRecord(name=name, split=split, classes=classes, parts=kept)


def _files_of(images: RawImages) -> FileImages | None:
    inner = images.images if isinstance(images, LabelsRemoved) else images
    return inner if isinstance(inner, FileImages) else None


def _part(images: RawImages, classes: tuple[str, ...], *, by_name: bool) -> PartRecord:
    files = _files_of(images)
    if files is None:
        source = fingerprint(images) if isinstance(images, Mixed) else ""
        return PartRecord(count=len(images), source=source)
    has_labels = files is images
    if not by_name:
        return PartRecord(count=len(files), hashes=_hashes(files, classes if has_labels else ()))
    labels = files.labels.tolist() if has_labels else [None] * len(files)
    sizes = [_size(path) for path in files.paths]
    names = map(os.fsdecode, files.names)
    return PartRecord(
        count=len(files),
        files={n: (label, size) for n, label, size in zip(names, labels, sizes, strict=True)},
    )


def content_of(images: RawImages, classes: tuple[str, ...]) -> str:
    """A hash of the names of files and of their classes; empty for images that are no files."""
    files = _files_of(images)
    if files is None:
        return ""
    hashes = _hashes(files, classes if files is images else ())
    return hashlib.sha256(json.dumps([classes, hashes], sort_keys=True).encode()).hexdigest()


def _size(path: bytes) -> int:
    """Bytes of a file; -1 of one that is not there, as a link to nowhere."""
    try:
        return os.stat(path).st_size
    except OSError:
        return -1


def _hashes(files: FileImages, classes: tuple[str, ...]) -> dict[str, str]:
    """Class -> hash of the names of its files, in no order; of all if there are no classes."""
    labels = files.labels.tolist() if classes else [0] * len(files)
    titles = (classes[label] if classes else "" for label in labels)
    return class_hashes(zip(files.names, titles, strict=True))


def held(parts: Parts, record: DataRecord) -> Parts:
    """The files that a record has in each part, in its order: those that still exist.

    New files are left out, and none changes its part because others came or went. Parts that are
    no files, or too many to be recorded by name, stay as they are, but for files of the others: so
    does the training part of a run that learned from other images.

    Raises:
        DataError: none of the files of a part is there.
    """
    own = [parts.train, parts.validation, parts.test]
    if not all(isinstance(part, FileImages) for part in own):
        return parts
    files = cast(list[FileImages], own)
    known = [record.parts[name].files for name in PARTS]
    if not any(known):
        return parts
    every = replace(
        files[0],
        paths=np.concatenate([part.paths for part in files]),
        labels=torch.cat([part.labels for part in files]),
    )
    place = {os.fsdecode(name): index for index, name in enumerate(every.names)}
    chosen = [[place[name] for name in names or () if name in place] for names in known]
    taken = {index for indices in chosen for index in indices}
    for number, (part, names) in enumerate(zip(files, known, strict=True)):
        if not names:
            own_files = (place[os.fsdecode(name)] for name in part.names)
            chosen[number] = [index for index in own_files if index not in taken]
    for title, indices in zip(PARTS, chosen, strict=True):
        if not indices:
            raise DataError(
                f"{every.home} holds none of the {record.parts[title].count} images of the "
                f"run's {title} part; bring them back, or give their folder by data.root"
            )
    return Parts(*(every.select(np.array(indices, dtype=np.int64)) for indices in chosen))
