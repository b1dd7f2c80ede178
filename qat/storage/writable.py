"""Disk check: whether a folder for runs can be made and has room."""

import os
import shutil
from pathlib import Path

from qat.errors import SpecError

_LEAST_FREE = 10 * 2**20  # bytes; less does not even hold the smallest network's checkpoints


def check_writable(folder: Path, key: str) -> None:
    """Raise SpecError if a folder for runs cannot be made where `key` says."""
    parent = folder.absolute()
    while not parent.exists() and not parent.is_symlink():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise SpecError(
            f"{key}={folder}: {parent} is no folder that can be written to; choose another with "
            f"{key}=FOLDER"
        )
    free = shutil.disk_usage(parent).free
    if free < _LEAST_FREE:
        raise SpecError(
            f"{key}={folder}: the disk has {free} bytes left, a run needs "
            f"{_LEAST_FREE} at least; make room or choose another with {key}=FOLDER"
        )
