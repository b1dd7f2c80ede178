"""Folder lock: one process at a time."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from qat.errors import QatError

_PAUSE = 0.2  # seconds between two tries


@contextmanager
def only_process(
    folder: Path,
    *,
    name: str = ".lock",
    wait: float = 0.0,
    waiting: Callable[[], None] = lambda: None,
) -> Iterator[None]:
    """A block that no other process is in at the same time for this folder.

    The operating system ends the lock with the process, however that ends. There is none on
    Windows, which has no such locks.

    Args:
        folder: that exists.
        name: of the file in it that is locked.
        wait: seconds to wait for another process to leave, `math.inf` for as long as it takes.
        waiting: called once, before waiting.

    Raises:
        QatError: another process is still there after that time.
    """
    if sys.platform == "win32":
        yield
        return
    import fcntl

    deadline, is_first = time.monotonic() + wait, True
    with (folder / name).open("a") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise QatError(
                        f"{folder} is in use by another process; wait for it or stop it"
                    ) from None
            if is_first:
                waiting()
                is_first = False
            time.sleep(_PAUSE)
        yield
