"""Read errors of data sets: the many exceptions of reading and downloading in one sentence."""

import pickle
import socket
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qat.errors import DataError, QatError

_TIMEOUT = 30.0  # seconds without an answer from a server
_FAILURES = (
    *(OSError, EOFError, RuntimeError, ValueError, KeyError, AssertionError),
    *(pickle.UnpicklingError, zlib.error),
)


@contextmanager
def reading(
    title: str, root: Path, *, download: bool = False, group: str = "data"
) -> Iterator[None]:
    """A block whose failures become a DataError.

    Args:
        title: name of the data set in the message.
        root: folder of the data.
        download: whether the block may use the network; a silent server then fails after 30 s.
        group: of the options `root` and `download` in the message.

    Raises:
        DataError: anything the readers of files and of the network raise.
    """
    before = socket.getdefaulttimeout()
    if download:
        socket.setdefaulttimeout(_TIMEOUT)
    try:
        yield
    except QatError:
        raise
    except _FAILURES as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        if download:
            cure = f"check the network and free space, or put the files into {group}.root={root}"
            raise DataError(f"{title} could not be downloaded ({reason}); {cure}") from error
        cure = f"put its files there, in place of damaged ones, or set {group}.download=true"
        raise DataError(
            f"{title} in {group}.root={root} is missing or damaged ({reason}); {cure}"
        ) from error
    finally:
        socket.setdefaulttimeout(before)
