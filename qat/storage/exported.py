"""Exported files of a run: what each holds and what was measured of it, as EXPORT/files.json.

    {"fast.onnx": {"form": "fast", "bytes": 1499624, "float_bytes": 44773289,
                   "accuracy": {"test": 0.98}, "differ": {"test": [3, 359]},
                   "latency": [{"batch": 1, "fastest": 0.0057, "float": 0.0171, ...}]}}

Standard library only.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from qat.errors import CheckpointError
from qat.storage.atomic import write_whole
from qat.storage.run_files import read_json

_NAME = "files.json"


def note_file(path: Path, entry: Mapping[str, Any]) -> None:
    """Write down a file that was just written, in place of what was known of one of its name.

    Args:
        path: of the file.
        entry: plain values.
    """
    _write(path.parent, {**exported_files(path.parent), path.name: dict(entry)})


def note_latency(folder: Path, name: str, latency: list[dict[str, Any]]) -> None:
    """Write down the latency of a file that `note_file` knows.

    Raises:
        CheckpointError: the file went, or was written anew, while it was measured.
    """
    files = exported_files(folder)
    if name not in files:
        raise CheckpointError(f"{folder / name} was written anew while it was measured; try again")
    _write(folder, {**files, name: {**files[name], "latency": latency}})


def exported_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Name -> entry of the files that are still as they were written; {} if none are.

    A file of another size has been written by someone else since; what is damaged tells nothing.
    """
    found: dict[str, Any] = {}
    with suppress(CheckpointError):
        found = read_json(folder / _NAME)
    return {
        name: entry
        for name, entry in found.items()
        if isinstance(entry, dict) and entry.get("bytes", -1) == _size(folder / Path(name).name)
    }


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _write(folder: Path, files: Mapping[str, Any]) -> None:
    write_whole(folder / _NAME, json.dumps(files, indent=1, sort_keys=True) + "\n")
