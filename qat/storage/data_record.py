"""Data record of a run, RUN/data.json.gz: the images of its parts when it began."""

import gzip
import hashlib
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qat.storage.atomic import replacing
from qat.storage.reading import is_there, parsing, read_regular

FILE = "data.json.gz"
PARTS = ("train", "validation", "test")
MOST_FILES = 100_000  # kept by name; of more there is a hash for each class
_MOST_BYTES = 100_000_000  # unpacked, so that a few bytes cannot become all memory


@dataclass(frozen=True, slots=True, kw_only=True)
class PartRecord:
    """What is known of the images of one part.

    Attributes:
        count: of images.
        files: name below the home of the data set -> (label if it was read, size in bytes), in the
            order of the part; empty where the images are no files, or too many.
        hashes: class -> hash of the names of its files, where there are too many.
        source: of images from elsewhere, what tells them from others; empty for the task's own.
    """

    count: int
    files: Mapping[str, tuple[int | None, int]] = field(default_factory=dict)
    hashes: Mapping[str, str] = field(default_factory=dict)
    source: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataRecord:
    """What the data of a run were when it began.

    Attributes:
        name: of the data set.
        split: the rule by which its parts were carved.
        classes: their names, by label.
        parts: train, validation and test.
    """

    name: str
    split: str
    classes: tuple[str, ...]
    parts: Mapping[str, PartRecord]


def class_hashes(files: Iterable[tuple[bytes, str]]) -> dict[str, str]:
    """Class -> hash of the names of its files, in whatever order these come.

    >>> class_hashes([(b"a/1.png", "a"), (b"a/2.png", "a")])
    {'a': 'd58a42c8cb105c16'}

    Args:
        files: name below the home of the data set, and class; "" for all where none is known.
    """
    names: dict[str, list[bytes]] = {}
    for name, title in files:
        names.setdefault(title, []).append(name)
    return {
        title: hashlib.sha256(b"\0".join(sorted(own))).hexdigest()[:16]
        for title, own in names.items()
    }


def write_record(folder: Path, record: DataRecord) -> None:
    """Write RUN/data.json.gz; equal data give equal bytes.

    Raises:
        CheckpointError: it cannot be written.
    """
    parts = {
        name: {
            "count": part.count,
            "files": [[file, *known] for file, known in part.files.items()],
            "hashes": dict(part.hashes),
            "source": part.source,
        }
        for name, part in record.parts.items()
    }
    own = {"name": record.name, "split": record.split, "classes": list(record.classes)}
    with replacing(folder / FILE) as file:
        file.write(gzip.compress(json.dumps(own | {"parts": parts}).encode(), mtime=0))


def read_record(folder: Path) -> DataRecord | None:
    """What a run wrote down of its data; None of a run that wrote nothing.

    Raises:
        CheckpointError: the file is damaged.
    """
    path = folder / FILE
    if not is_there(path):
        return None
    cure = "restore it, or remove it and its run is known by the number of its images"
    packed = read_regular(path, most=_MOST_BYTES)
    with parsing(str(path), cure), gzip.open(io.BytesIO(packed)) as file:
        text = file.read(_MOST_BYTES + 1)
        if len(text) > _MOST_BYTES:
            raise ValueError(f"it unfolds to more than {_MOST_BYTES:,} bytes")
        record = _record(json.loads(text))
    return record


def _record(content: Any) -> DataRecord:
    name, split, *classes = (
        _typed(value, str) for value in (content["name"], content["split"], *content["classes"])
    )
    parts = {part: _part(content["parts"][part]) for part in PARTS}
    return DataRecord(name=name, split=split, classes=tuple(classes), parts=parts)


def _part(content: Any) -> PartRecord:
    return PartRecord(
        count=_typed(content["count"], int),
        files={
            _typed(name, str): (label if label is None else _typed(label, int), _typed(size, int))
            for name, label, size in content["files"]
        },
        hashes={name: _typed(value, str) for name, value in content["hashes"].items()},
        source=_typed(content["source"], str),
    )


def _typed(value: Any, kind: type[Any]) -> Any:
    if type(value) is not kind:
        raise TypeError(f"{value!r:.50} is no {kind.__name__}")
    return value
