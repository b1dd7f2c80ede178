"""Unlabelled images out of a folder."""

import hashlib
import logging
import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from qat.data.image_files import read_image
from qat.data.scan import check_readable, named, scan
from qat.data.unlabelled.form import Form
from qat.errors import DataError
from qat.spec.unlabelled import FolderImages, check_folder, images_below

_log = logging.getLogger(__name__)
_WORKERS = min(8, os.cpu_count() or 1)  # of the scan


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
        path = os.fsdecode(self.paths[index])
        return self.form(read_image(path, is_upright=self.form.is_upright))


def folder_images(options: FolderImages, form: Form) -> UnlabelledFiles:
    """Every image file in and below a folder, sorted by path.

    Each file is decoded once, of more than 50,000 the headers are read; with unreadable=skip all
    are decoded, and the unreadable are counted and left out.

    Raises:
        SpecError: no folder is given.
        DataError: no image is there, or one, with unreadable=skip each one, is not readable.
    """
    root = check_folder(options)
    paths = sorted(images_below(root))
    is_skipping = options.unreadable == "skip"
    found = scan(paths, "decode" if is_skipping else "auto", workers=_WORKERS)
    if not is_skipping:
        check_readable(found, "unlabelled.folder.unreadable")
    problems = found.problems
    kept = [os.fsencode(path) for path in paths if path not in problems]
    if not kept:
        raise DataError(
            f"unlabelled.folder.root={root}: none of its {len(paths)} images is readable; "
            f"{named(problems)}"
        )
    if problems:
        _log.warning(
            "unlabelled.folder: %d of %d files are no readable images and are left out: %s",
            *(len(problems), len(paths), named(problems)),
        )
    below = b"\0".join(os.path.relpath(path, os.fsencode(root)) for path in kept)
    fingerprint = f"{len(kept)} files {hashlib.sha256(below).hexdigest()}"
    return UnlabelledFiles(
        np.array(kept, dtype=np.bytes_), form, tuple(problems), fingerprint=fingerprint
    )
