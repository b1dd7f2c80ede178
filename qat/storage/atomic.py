"""Atomic file writes: a file is whole or not there, and each writer has a temporary of its own."""

import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from qat.errors import CheckpointError

_PART = re.compile(r"\..+\.[0-9a-f]{16}\.part", re.DOTALL)


@contextmanager
def whole_file(path: Path) -> Iterator[io.BufferedWriter]:
    """Open a file for writing that takes the name `path` only once it is complete and on disk.

    Until then `path` is what it was, whatever ends the block. Of several writers at once the last
    to end wins, with a whole file.

    Raises:
        OSError: it cannot be written; nothing is left beside it then.
    """
    part = path.with_name(f".{path.name}.{os.urandom(8).hex()}.part")
    try:
        with part.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise
    _sync_folder(path.parent)


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file by `whole_file`: a text in UTF-8, where "?" stands for what that cannot hold."""
    with whole_file(path) as file:
        file.write(content.encode("utf-8", "replace") if isinstance(content, str) else content)


@contextmanager
def replacing(path: Path) -> Iterator[io.BufferedWriter]:
    """Write a file by `whole_file`, in a folder that is made if need be, but none above it.

    So what writes into a run folder ends when that is deleted, and does not begin another one.

    Raises:
        CheckpointError: The file cannot be written; the old one, if any, is untouched.
    """
    try:
        path.parent.mkdir(exist_ok=True)
        with whole_file(path) as file:
            yield file
    except OSError as error:
        raise CheckpointError(
            f"cannot write {path}: {error.strerror or error}; free space or choose another folder"
        ) from error


def discard_parts(folder: Path) -> None:
    """Remove the temporaries that killed writers left below a folder; nobody may write there."""
    for part in folder.rglob(".*.part"):
        if _PART.fullmatch(part.name):
            with suppress(OSError):
                part.unlink()


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut, where the file system offers that."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
