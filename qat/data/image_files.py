"""Image files: listed, one folder a class, and read."""

import dataclasses
import os
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from qat.errors import DataError
from qat.spec.unlabelled import ENDINGS, images_below

# what Pillow raises for empty, cut, foreign and oversized files, depending on the format
_UNREADABLE = (
    *(OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError),
    *(struct.error, zlib.error, Image.DecompressionBombError),
)


class UnreadableImageError(DataError):
    """An image file is damaged.

    A loader's worker hands errors on as class(text of a traceback); the last line of that text
    is the message, and only that is kept.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message.rstrip().rpartition(f"{type(self).__name__}: ")[2])


@dataclass(frozen=True, slots=True)
class FileImages:
    """Image files, opened when they are asked for.

    Attributes:
        paths: (N,), bytes. One array instead of a list of a million strings, whose reference
            counts would make each worker copy the pages that it shares with its parent.
        labels: (N,), int64.
    """

    paths: np.ndarray
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return self.image(index), int(self.labels[index])

    def image(self, index: int) -> Image.Image:
        """The image without its label, which is not read."""
        return read_image(os.fsdecode(self.paths[index]))

    def select(self, indices: np.ndarray) -> Self:
        """The images at `indices`, in that order."""
        return dataclasses.replace(
            self, paths=self.paths[indices], labels=self.labels[torch.from_numpy(indices)]
        )


def file_images(paths: Sequence[str], labels: Sequence[int]) -> FileImages:
    """Image files with their labels."""
    names = np.array([os.fsencode(path) for path in paths], dtype=np.bytes_)
    return FileImages(names, torch.tensor(labels, dtype=torch.int64))


def scan(folder: Path, classes: Sequence[str]) -> FileImages:
    """All images in and below `folder`/<class>, for each class in sorted order.

    Raises:
        DataError: a class has no image.
    """
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = sorted(images_below(folder / name))
        if not found:
            raise DataError(
                f"class folder {folder / name} holds no image ({' '.join(ENDINGS)}); "
                "add images or remove it"
            )
        paths += found
        labels += [label] * len(found)
    return file_images(paths, labels)


def read_image(path: str) -> Image.Image:
    """Read an image file as 8-bit RGB; grey is repeated, alpha is left out, 16 bits become 8.

    Raises:
        UnreadableImageError: the file is missing, empty, cut off or no image.
    """
    try:
        with Image.open(path) as image:
            return to_rgb(image)
    except _UNREADABLE as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UnreadableImageError(
            f"{path} is not a readable image ({reason}); replace or remove the file"
        ) from error


def to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB of an image of any mode, as `read_image` gives it.

    Raises:
        ValueError: the pixels are floats.
    """
    if image.mode == "F":
        raise ValueError("float pixels have no fixed range, convert it to 8 or 16 bits")
    if image.mode.startswith("I"):
        # Pillow would clip 16-bit grey at 255 instead of scaling it
        values = np.clip(np.asarray(image), 0, 2**16 - 1) >> 8
        return Image.fromarray(values.astype(np.uint8)).convert("RGB")
    if "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")
