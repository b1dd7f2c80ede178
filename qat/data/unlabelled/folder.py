"""Unlabelled images out of a folder."""

import hashlib
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from qat.data.image_files import UnreadableImageError, read_image
from qat.data.unlabelled.form import Form
from qat.errors import DataError
from qat.spec.unlabelled import FolderImages, check_folder, images_below

_log = logging.getLogger(__name__)
_NAMED = 5  # unreadable files in a message


@dataclass(frozen=True, slots=True)
class UnlabelledFiles:
    """Image files, opened and brought to the form of the task when they are asked for.

    Attributes:
        paths: (N,), bytes: one array, as in FileImages.
        form: of the task.
        skipped: paths of the unreadable files that were left out.
        fingerprint: number and sha256 of the paths below the folder.
    """

    paths: np.ndarray
    form: Form
    skipped: tuple[str, ...] = ()
    fingerprint: str = ""

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Any:
        return self.form(read_image(os.fsdecode(self.paths[index])))


def folder_images(options: FolderImages, form: Form) -> UnlabelledFiles:
    """Every image file in and below a folder, sorted by path.

    With unreadable=skip each file is opened and decoded once, and the unreadable are counted and
    left out; about 1 ms for a file of 100 kB on each core.

    Raises:
        SpecError: no folder is given.
        DataError: no image is there, or none is readable.
    """
    root = check_folder(options)
    paths = sorted(images_below(root))
    problems = _problems(paths) if options.unreadable == "skip" else {}
    kept = [os.fsencode(path) for path in paths if path not in problems]
    if not kept:
        raise DataError(
            f"unlabelled.folder.root={root}: none of its {len(paths)} images is readable; "
            f"{next(iter(problems.values()))}"
        )
    if problems:
        names = ", ".join([*problems][:_NAMED]) + (" ..." if len(problems) > _NAMED else "")
        _log.warning(
            "unlabelled.folder: %d of %d files are no readable images and are left out: %s",
            *(len(problems), len(paths), names),
        )
    below = b"\0".join(os.path.relpath(path, os.fsencode(root)) for path in kept)
    fingerprint = f"{len(kept)} files {hashlib.sha256(below).hexdigest()}"
    return UnlabelledFiles(
        np.array(kept, dtype=np.bytes_), form, tuple(problems), fingerprint=fingerprint
    )


def _problems(paths: list[str]) -> dict[str, str]:
    """Path -> what is wrong with it, of the unreadable files; decoders run in threads."""
    with ThreadPoolExecutor() as pool:
        found = zip(paths, pool.map(_problem, paths), strict=True)
        return {path: problem for path, problem in found if problem}


def _problem(path: str) -> str:
    try:
        read_image(path)
    except UnreadableImageError as error:
        return str(error)
    return ""
