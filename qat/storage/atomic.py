"""Atomic file writes: a file is whole or not there, and each writer has a temporary of its own."""

import contextlib
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from qat.errors import CheckpointError


@contextmanager
def whole_file(path: Path) -> Iterator[io.BufferedWriter]:
    """Open a file for writing that takes the name `path` only once it is complete and on disk.

    For one writer at a time; until then `path` is what it was, whatever ends the block.

    Raises:
        OSError: it cannot be written; nothing is left beside it then.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise
    _sync_folder(path.parent)


def write_whole(path: Path, text: str) -> None:
    """Let `path` hold a text in UTF-8, by `whole_file`; what UTF-8 cannot hold becomes "?"."""
    with whole_file(path) as file:
        file.write(text.encode("utf-8", "replace"))


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut, where the file system offers that."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[io.BufferedWriter]:
    """`whole_file` in a folder that is made if need be.

    Raises:
        CheckpointError: The file cannot be written; the old one, if any, is untouched.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as file:
            yield file
    except OSError as error:
        raise CheckpointError(
            f"cannot write {path}: {error.strerror or error}; free space or choose another folder"
        ) from error
