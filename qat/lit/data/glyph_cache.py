"""Generated pictures in a file: named by what made them, written atomically, verified on reading.

A file holds the pixels and then the SHA-256 of these bytes.
"""

import hashlib
import logging
import math
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np

from qat.errors import DataError

_log = logging.getLogger(__name__)
_DIGEST = hashlib.sha256().digest_size


def cached(path: Path, shape: tuple[int, ...], *, generate: Callable[[], np.ndarray]) -> np.ndarray:
    """The pictures in a file; they are generated and kept there unless it holds them already.

    A damaged file is told in the log and replaced.

    Args:
        path: of the file; its name must depend on everything that the pictures depend on.
        shape: of the pictures, uint8.
        generate: makes them.

    Raises:
        DataError: the file can be neither read nor written.
    """
    try:
        found = _verified(path.read_bytes(), shape) if path.exists() else None
        if found is not None:
            return found
        if path.exists():
            _log.warning("%s is damaged; its pictures are generated again", path)
        pictures = generate()
        _replace(path, pictures.tobytes())
    except OSError as error:
        raise DataError(
            f"data=glyphs cannot keep its pictures in {path} ({error.strerror or error}); free "
            "space, or set data.root=<folder that can be written>"
        ) from error
    return pictures


def _verified(data: bytes, shape: tuple[int, ...]) -> np.ndarray | None:
    pixels, digest = data[:-_DIGEST], data[-_DIGEST:]
    if len(pixels) != math.prod(shape) or hashlib.sha256(pixels).digest() != digest:
        return None
    return np.frombuffer(bytearray(pixels), dtype=np.uint8).reshape(shape)


def _replace(path: Path, pixels: bytes) -> None:
    """Let `path` name the complete file; each of two processes at once writes a file of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    part = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(pixels + hashlib.sha256(pixels).digest())
            file.flush()
            os.fsync(file.fileno())
        part.chmod(0o644)  # mkstemp's files are for their owner only
        part.replace(path)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise
