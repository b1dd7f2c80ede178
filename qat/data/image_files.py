"""Image files: listed, one folder a class, and read."""

import dataclasses
import os
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor

from qat.errors import DataError
from qat.spec.unlabelled import ENDINGS, images_below

_NAMES = {"jpg": "JPEG", "tif": "TIFF", "pgm": "PPM", "pbm": "PPM"}
# ending -> name of its format
FORMAT_OF = {ending: _NAMES.get(ending[1:], ending[1:].upper()) for ending in ENDINGS}
# others are not tried: Pillow would hand PostScript to Ghostscript, whatever the name of the file
FORMATS = tuple(dict.fromkeys(FORMAT_OF.values()))
_SIXTEEN_BITS = ("PNG", "PPM")  # what their deepest pixels have
# values of the tags of TIFF
_SIGNED, _WHITE_IS_ZERO = 2, 0

# EXIF orientation -> what brings the stored pixels upright
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# what Pillow raises for empty, cut, foreign and oversized files, depending on the format
_UNREADABLE = (
    *(OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError),
    *(struct.error, zlib.error, Image.DecompressionBombError),
)


class UnreadableImageError(DataError):
    """An image file is damaged.

    A loader's worker hands errors on as class(text of a traceback); the last line of that text
    is the message, and only that is kept.

    Attributes:
        reason: what is wrong with it; empty in an error that a worker handed on.
    """

    def __init__(self, message: str, *, reason: str = "") -> None:
        super().__init__(message.rstrip().rpartition(f"{type(self).__name__}: ")[2])
        self.reason = reason


@dataclass(frozen=True, slots=True)
class FileImages:
    """Image files, opened when they are asked for.

    Attributes:
        paths: (N,), bytes. One array instead of a list of a million strings, whose reference
            counts would make each worker copy the pages that it shares with its parent.
        labels: (N,), int64.
        home: folder of the data set, above all of them.
        is_upright: whether images are turned as their EXIF orientation says.
    """

    paths: np.ndarray
    labels: Tensor
    home: str
    is_upright: bool = False

    @property
    def names(self) -> list[bytes]:
        """Paths below the home: what a file is known by, wherever the data set lies."""
        begin = len(os.fsencode(os.path.join(self.home, "")))
        return [bytes(path[begin:]) for path in self.paths]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return self.image(index), int(self.labels[index])

    def image(self, index: int) -> Image.Image:
        """The image without its label, which is not read."""
        return read_image(os.fsdecode(self.paths[index]), is_upright=self.is_upright)

    def select(self, indices: np.ndarray) -> Self:
        """The images at `indices`, in that order."""
        return dataclasses.replace(
            self, paths=self.paths[indices], labels=self.labels[torch.from_numpy(indices)]
        )


def file_images(paths: Sequence[str], labels: Sequence[int], home: Path) -> FileImages:
    """Image files below `home` with their labels."""
    names = np.array([os.fsencode(path) for path in paths], dtype=np.bytes_)
    return FileImages(names, torch.tensor(labels, dtype=torch.int64), str(home))


def files_of(folder: Path, classes: Sequence[str], home: Path) -> FileImages:
    """All images in and below `folder`/<class>, for each class in sorted order.

    Args:
        folder: of a part.
        classes: names of its folders.
        home: of the data set, `folder` or above it.

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
    return file_images(paths, labels, home)


def read_image(path: str, *, is_upright: bool = False) -> Image.Image:
    """Read an image file as 8-bit RGB; grey is repeated, alpha is left out, 16 bits become 8.

    Args:
        path: of the file, in one of FORMATS whatever its name says.
        is_upright: turn the image as its EXIF orientation says; false leaves it as it is stored.

    Raises:
        UnreadableImageError: the file is missing, empty, cut off or no image.
    """
    with opened_image(path) as image:
        pixels = to_rgb(image)
        if is_upright:
            # a copy of the pixels has lost what the file says of itself
            turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
            pixels = pixels if turn is None else pixels.transpose(turn)
        return pixels


@contextmanager
def opened_image(path: str) -> Iterator[Image.Image]:
    """An image file whose header was read; what goes wrong in the block is said of the file.

    Raises:
        UnreadableImageError: as `read_image`.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            yield image
    except _UNREADABLE as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            is_empty = os.path.getsize(path) == 0
            reason = "it is empty" if is_empty else f"it begins like none of {', '.join(FORMATS)}"
        raise UnreadableImageError(
            f"{path} is not a readable image ({reason}); replace or remove the file", reason=reason
        ) from error


def check_image(path: str, *, decode: bool) -> str:
    """The format of an image file that `read_image` can read.

    Args:
        path: of the file.
        decode: whether all of it is read, or its header only.

    Raises:
        UnreadableImageError: as `read_image`; a file that is cut off has a good header.
    """
    with opened_image(path) as image:
        if decode:
            to_rgb(image)
        else:
            _check_range(image)
        # several JPEG images in one file, of which the first counts
        return "JPEG" if image.format == "MPO" else str(image.format)


def _check_range(image: Image.Image) -> None:
    """Raise ValueError if it is unknown which values are black and white."""
    kind = None
    if image.mode == "F":
        kind = "float"
    elif _SIGNED in _tags(image).get(ExifTags.Base.SampleFormat, ()):
        kind = f"signed {_bits(image)}-bit"
    elif image.mode == "I" and image.format not in _SIXTEEN_BITS:
        kind = f"{_bits(image)}-bit"
    if kind is not None:
        raise ValueError(f"{kind} pixels have no fixed range, convert it to 8 or 16 bits unsigned")


def to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB of an image of any mode, as `read_image` gives it.

    Raises:
        ValueError: the range of the pixels is unknown: they are floats, signed, or integers of 32
            bits.
    """
    _check_range(image)
    if image.mode.startswith("I"):
        # Pillow would clip grey of more than 8 bits at 255 instead of scaling it
        top = 2 ** _bits(image) - 1 if image.format == "TIFF" else 2**16 - 1
        values = np.clip(np.asarray(image), 0, top)
        if _tags(image).get(ExifTags.Base.PhotometricInterpretation) == _WHITE_IS_ZERO:
            values = top - values
        return Image.fromarray((values >> (top.bit_length() - 8)).astype(np.uint8)).convert("RGB")
    if "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def _tags(image: Image.Image) -> Mapping[int, Any]:
    """What a TIFF file says of its pixels; nothing of others."""
    return getattr(image, "tag_v2", {})


def _bits(image: Image.Image) -> int:
    """Bits of a grey value, as a TIFF file tells them; 32 of others in Pillow's mode of these."""
    return int(_tags(image).get(ExifTags.Base.BitsPerSample, (32,))[0])
