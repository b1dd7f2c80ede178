"""Checkpoint files: atomic and fsynced on writing, verified on reading.

A file is what `torch.save` writes followed by a 40-byte trailer, 8 bytes of magic and the sha256 of
all bytes before it. Zip readers ignore what follows the archive, so plain `torch.load` still opens
it. The zip format's own checksum is no substitute: `torch.load` never looks at it, so a flipped bit
in a weight would load in silence. Tensors that share their memory are stored once.

Importing this module imports neither torch nor Lightning, so that `resume=` can be checked at once.
"""

import contextlib
import hashlib
import io
import logging
import pickle
import re
import zipfile
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Thread
from typing import IO, Any

from qat.errors import CheckpointError
from qat.storage.atomic import replacing
from qat.storage.reading import parsing, read_regular

_MAGIC = b"QATSHA\x00\x01"
_TRAILER = len(_MAGIC) + hashlib.sha256().digest_size
_LONG = 2**20  # bytes whose hash takes a thousand times as long as to start a thread
_NAME = re.compile(r"step=(\d+)\.ckpt")
_log = logging.getLogger(__name__)


def checkpoint_name(step: int) -> str:
    """Name of the checkpoint taken after `step` optimizer steps; names sort like steps."""
    return f"step={step:08d}.ckpt"


def checkpoints_by_step(folder: str | Path) -> dict[int, Path]:
    """The checkpoints of a folder, damaged or not, from the oldest step to the newest."""
    found = {}
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        for path in Path(folder).iterdir():
            if match := _NAME.fullmatch(path.name):
                found[int(match.group(1))] = path
    return dict(sorted(found.items()))


def save(checkpoint: Mapping[str, Any], path: str | Path) -> None:
    """Write a checkpoint so that at any moment `path` is absent, the old file or the new one.

    The bytes go to a temporary file beside the target (a rename across file systems is a copy),
    reach the disk, and only then take the target's name.

    Raises:
        CheckpointError: The folder is read-only, the disk is full, or something is in the way;
            what was there before is untouched and nothing is left beside it.
    """
    import torch

    with replacing(Path(path)) as file:
        hashed = _Hashed(file)
        try:
            torch.save(dict(checkpoint), hashed)  # type: ignore[arg-type] # it writes, no more
        except RuntimeError:  # torch's own words for an end that could not be written either
            if hashed.error is not None:
                raise hashed.error from None
            raise
        file.write(hashed.trailer())


class _Hashed:
    """A file that torch writes to, and the sha256 of what it wrote: no copy waits in memory.

    What is long is hashed while it is written; both leave the interpreter to others meanwhile.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._sha = file, hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        hashing = Thread(target=self._sha.update, args=(data,)) if len(data) > _LONG else None
        if hashing is None:
            self._sha.update(data)
        else:
            hashing.start()
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise
        finally:
            if hashing is not None:
                hashing.join()

    def flush(self) -> None:
        self._file.flush()

    def trailer(self) -> bytes:
        return _MAGIC + self._sha.digest()


def save_deflated(checkpoint: Mapping[str, Any], path: str | Path) -> None:
    """`save` in fewer bytes, for a file that is written once: float weights lose 7 %.

    It takes half a second for 45 MB on two cores. The reader of `torch.load` opens either.

    Raises:
        CheckpointError: As `save`.
    """
    import torch

    buffer = io.BytesIO()
    torch.save(dict(checkpoint), buffer)
    with replacing(Path(path)) as file:
        hashed = _Hashed(file)
        hashed.write(_deflated(buffer))
        file.write(hashed.trailer())


def _deflated(archive: IO[bytes]) -> bytes:
    import torch

    buffer = io.BytesIO()
    threads = ThreadPoolExecutor(torch.get_num_threads())
    with zipfile.ZipFile(archive) as plain, zipfile.ZipFile(buffer, "w") as small, threads:
        contents = {name: plain.read(name) for name in plain.namelist()}
        for (name, content), short in zip(
            contents.items(), threads.map(_Deflated, contents.values()), strict=True
        ):
            entry = zipfile.ZipInfo(name)  # which, unlike a name alone, brings no time of day
            entry.compress_type = zipfile.ZIP_DEFLATED
            with small.open(entry, "w") as file:
                file._compressor = short  # type: ignore[attr-defined] # there is no option
                file.write(content)
    return buffer.getvalue()


class _Deflated:
    """What zipfile asks for while it writes an entry, made before: zlib leaves the interpreter.

    Floats repeat in no pattern: without the search for one it is four times as fast and no larger.
    """

    def __init__(self, content: bytes) -> None:
        huffman = zlib.compressobj(1, zlib.DEFLATED, -15, 9, zlib.Z_HUFFMAN_ONLY)
        self._short = huffman.compress(content) + huffman.flush()

    def compress(self, content: bytes) -> bytes:
        return b""

    def flush(self) -> bytes:
        return self._short


def _verified_bytes(path: str | Path) -> memoryview:
    """The archive's bytes, without the trailer that vouches for them."""
    data = memoryview(read_regular(path, f"checkpoint {path}"))
    if not data:
        raise CheckpointError(f"checkpoint {path} is empty; use an older one")
    body, trailer = data[:-_TRAILER], bytes(data[-_TRAILER:])
    if not trailer.startswith(_MAGIC):
        raise CheckpointError(f"checkpoint {path} is cut short or was not written by qat")
    if trailer != _MAGIC + hashlib.sha256(body).digest():
        raise CheckpointError(f"checkpoint {path} does not match its sha256; use an older one")
    return body


def verify(path: str | Path) -> None:
    """Check that a checkpoint is, byte for byte, what was once written.

    Raises:
        CheckpointError: It is missing, empty, cut short, altered, a URL, or not written by qat.
    """
    _verified_bytes(path)


def load(path: str | Path, *, map_location: Any = "cpu") -> dict[str, Any]:
    """Read a checkpoint: verified first, then unpickled as tensors and plain values only.

    Args:
        path: A local file; URLs are refused.
        map_location: Where tensors go, as in `torch.load`.

    Raises:
        CheckpointError: As `verify`, or the file holds more than tensors and plain values.
    """
    return _parsed(_verified_bytes(path), path, map_location=map_location)


def _parsed(body: memoryview, path: str | Path, *, map_location: Any = "cpu") -> dict[str, Any]:
    import torch

    with parsing(f"checkpoint {path}", "load only files that qat wrote"):
        try:
            content = torch.load(io.BytesIO(body), map_location=map_location, weights_only=True)
        except pickle.UnpicklingError:
            raise CheckpointError(
                f"checkpoint {path} holds more than tensors and plain values and is refused; "
                "load only files that qat wrote"
            ) from None
    if not isinstance(content, dict):
        raise CheckpointError(f"checkpoint {path} holds {type(content).__name__}, not a dict")
    return content


def last_good(folder: str | Path) -> Path | None:
    """The newest checkpoint of a folder that verifies; each damaged one passed over is reported.

    Returns:
        Its path, or None if the folder never held a checkpoint: then the caller says that the run
        starts from the beginning.

    Raises:
        CheckpointError: There are checkpoints, and all of them are damaged.
    """
    found = _newest(folder)
    return found and found[0]


def load_last_good(folder: str | Path) -> tuple[Path, dict[str, Any]] | None:
    """`last_good` and its content, read once, by the promises of `load`.

    Raises:
        CheckpointError: As `last_good`, or as `load` of the one that verifies.
    """
    found = _newest(folder)
    return found and (found[0], _parsed(found[1], found[0]))


def _newest(folder: str | Path) -> tuple[Path, memoryview] | None:
    skipped: list[str] = []
    for path in reversed(checkpoints_by_step(folder).values()):
        try:
            body = _verified_bytes(path)
        except CheckpointError as error:
            skipped.append(str(error))
            continue
        for reason in skipped:
            _log.warning("%s; using %s", reason.partition(";")[0], path)
        return path, body
    if skipped:
        raise CheckpointError(
            f"every checkpoint in {folder} is damaged ({' | '.join(skipped)}); restore one from a "
            "backup, or start a new run, from weights by init_from=RUN"
        )
    return None
