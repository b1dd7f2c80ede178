"""Reading of files that may come from anyone: looked at before the first byte, errors of one line.

Every reader of the project opens its files here, so that a pipe, a device, or a file without end
costs nothing, and hands them to its parser inside `parsing`, so that whatever a parser says of
damaged bytes becomes one sentence. Standard library only.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from typing import BinaryIO

from qat.errors import CheckpointError, one_line
from qat.storage.memory import memory_limit


@contextmanager
def regular_file(path: str | Path, name: str | None = None) -> Iterator[BinaryIO]:
    """A regular file, open for reading; links are followed.

    Args:
        path: of the file.
        name: of it in messages; None for its path.

    Raises:
        CheckpointError: it is missing, no regular file, or cannot be read.
    """
    name = name or str(path)
    if "://" in str(path):
        raise CheckpointError(f"{name} is a URL; download it and give the local path")
    try:
        with os.fdopen(_opened(path), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise CheckpointError(f"{name} cannot be read: it is no regular file")
            yield file
    except FileNotFoundError:
        raise CheckpointError(f"{name} is missing") from None
    except OSError as error:
        raise CheckpointError(f"{name} cannot be read: {error.strerror or error}") from None


def _opened(path: str | Path) -> int:
    # without O_NONBLOCK to open a pipe waits for a writer
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        return os.open(path, flags)
    except ValueError as error:  # a NUL in the name
        raise OSError(str(error)) from None


def read_regular(path: str | Path, name: str | None = None, *, most: int | None = None) -> bytes:
    """The bytes of a regular file.

    Args:
        path: of the file.
        name: of it in messages; None for its path.
        most: bytes that such a file has; None for as many as fit into memory.

    Raises:
        CheckpointError: as `regular_file`, or it is larger.
    """
    with regular_file(path, name) as file:
        size = os.fstat(file.fileno()).st_size
        limit, whose = (
            (memory_limit(), "fit into memory here") if most is None else (most, "ours have")
        )
        # never more than it says it has: what is asked for is allocated at once
        content = file.read(size + 1) if size <= limit else b""
        if max(size, len(content)) > limit:
            raise CheckpointError(f"{name or path} has more than the {limit:,} bytes that {whose}")
        return content


def is_there(path: Path) -> bool:
    """Whether there is a file to read.

    Raises:
        CheckpointError: something else has its name, as a pipe, which would never end.
    """
    try:
        if path.is_file() or not path.exists():
            return path.is_file()
    except OSError as error:
        raise CheckpointError(f"{path.name} cannot be read: {error.strerror}") from None
    raise CheckpointError(f"{path.name} cannot be read: it is no regular file")


@contextmanager
def parsing(name: str, cure: str, *, verb: str = "read") -> Iterator[None]:
    """A block in which untrusted bytes are parsed; what it raises becomes one line.

    Args:
        name: of the file, for the message.
        cure: what to do.
        verb: what cannot be done.

    Raises:
        CheckpointError: anything was raised.
    """
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:  # parsers promise no kinds, and damage reaches every one of them
        raise CheckpointError(f"{name} cannot be {verb} ({reason_of(error)}); {cure}") from None


def reason_of(error: Exception) -> str:
    """Kind and text of another library's exception, for a message of ours."""
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return shorten(one_line(text), 200, placeholder=" ...")
