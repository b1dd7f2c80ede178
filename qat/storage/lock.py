"""Folder lock: one process at a time, by filelock."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from qat.errors import QatError

if TYPE_CHECKING:
    from filelock import AcquireReturnProxy, FileLock

_PAUSE = 0.2  # seconds between two tries


@contextmanager
def only_process(
    folder: Path,
    *,
    name: str = ".lock",
    wait: float = 0.0,
    waiting: Callable[[], None] = lambda: None,
) -> Iterator[None]:
    """Folder lock: a block that no other process is in at the same time.

    The operating system ends the lock with the process, however that ends. Children that it forks,
    such as the workers of a loader, do not hold it: filelock closes its descriptor in them.

    Args:
        folder: that exists.
        name: of the file in it that is locked.
        wait: seconds to wait for another process to leave, `math.inf` for as long as it takes.
        waiting: called once, before waiting.

    Raises:
        OSError: the folder does not exist, its lock cannot be written, or the file system has no
            locks; a file that is merely there would outlive a killed process.
        QatError: another process is still there after that time.
    """
    from filelock import FileLock, Timeout  # 50 ms, and many commands lock nothing

    folder.stat()  # filelock would make a folder that is not there
    lock = FileLock(folder / name, poll_interval=_PAUSE, fallback_to_soft=False)
    try:
        held = _acquired(lock, wait, waiting)
    except Timeout:
        raise QatError(f"{folder} is in use by another process; wait for it or stop it") from None
    with held:
        yield


def _acquired(
    lock: "FileLock", wait: float, waiting: Callable[[], None]
) -> "AcquireReturnProxy[FileLock]":
    end = time.monotonic() + wait
    try:
        return lock.acquire(blocking=False)
    except TimeoutError:
        if wait <= 0:
            raise
    waiting()
    return lock.acquire(timeout=max(0.0, end - time.monotonic()))
