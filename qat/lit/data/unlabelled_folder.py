"""Images without labels out of a folder."""

import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from qat.errors import DataError
from qat.lit.data.files import UnreadableImageError, images_below, read_image
from qat.lit.data.form import Form, Unlabelled
from qat.unlabelled_spec import FolderImages, check_folder

_log = logging.getLogger(__name__)
_NAMED = 5  # unreadable files in a message


def folder_images(options: FolderImages, form: Form) -> Unlabelled:
    """Every image file in and below a folder, sorted by path.

    With unreadable=skip each file is opened and decoded once, and the unreadable are counted and
    left out; about 1 ms for a file of 100 kB on each core.

    Raises:
        SpecError: no folder is given.
        DataError: no image is there, or none is readable.
    """
    root = check_folder(options)
    paths = sorted(images_below(root))
    if options.unreadable == "skip":
        paths = _readable(paths, root)
    # one array instead of a list of a million strings, as FileImages has it
    names = np.array([os.fsencode(path) for path in paths], dtype=np.bytes_)
    return Unlabelled(len(names), lambda index: read_image(os.fsdecode(names[index])), form)


def _readable(paths: Sequence[str], root: Path) -> list[str]:
    with ThreadPoolExecutor() as pool:
        problems = list(pool.map(_problem, paths))
    broken = [path for path, problem in zip(paths, problems, strict=True) if problem]
    if len(broken) == len(paths):
        raise DataError(
            f"unlabelled.folder.root={root}: none of its {len(paths)} images is readable; "
            f"{next(filter(None, problems))}"
        )
    if broken:
        more = " ..." if len(broken) > _NAMED else ""
        _log.warning(
            "unlabelled.folder: %d of %d files are no readable images and are left out: %s%s",
            *(len(broken), len(paths), ", ".join(broken[:_NAMED]), more),
        )
    return [path for path, problem in zip(paths, problems, strict=True) if not problem]


def _problem(path: str) -> str:
    try:
        read_image(path)
    except UnreadableImageError as error:
        return str(error)
    return ""
