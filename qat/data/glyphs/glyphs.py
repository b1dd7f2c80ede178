"""Synthetic letters: the 26 capitals in the fonts inside matplotlib, distorted; no download."""

import dataclasses
import hashlib
import json
import logging
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL
import torch
from PIL import features

from qat.data.dataset import TensorImages, Transform
from qat.data.glyphs.drawing import SIDE, Ranges, draw
from qat.data.glyphs.fonts import FACES, font_files, fonts_digest, shapes
from qat.data.module import ImageData
from qat.data.sampler import derived_seed
from qat.data.split import Parts
from qat.data.transforms import Pixels, cropped, plain
from qat.errors import DataError
from qat.spec.data import CLASSES, GlyphsSpec
from qat.spec.data_files import root_of
from qat.storage.atomic import write_whole

VERSION = 1  # of the generator; raised whenever the same options give other pictures


class Glyphs(ImageData):
    """26 capitals on coloured backgrounds, synthetic; sizes and difficulty are options.

    No typeface of one part is in another, so that validation and test ask for letters in shapes
    never seen in training: see `glyph_fonts`. The capitals alone, since some of 62 characters
    (O 0, I l 1, S s) could not be told apart without their neighbours.
    Mean and deviation are those of the training part with the default options.
    """

    channels = 3
    native_size = SIDE
    mean = (0.4995, 0.4978, 0.4996)
    std = (0.2435, 0.2528, 0.2424)

    @property
    def classes(self) -> tuple[str, ...]:
        """The letters A..Z."""
        return CLASSES

    def load(self) -> Parts:
        """Read the pictures, or generate them at the first use.

        Raises:
            DataError: a font is missing, or the pictures can be neither read nor kept.
        """
        options = self.options.glyphs or GlyphsSpec()
        sizes = options.sizes
        shape = (sum(sizes.values()), self.channels, SIDE, SIDE)
        path = cache_path(root_of(self.options), options)
        pictures = cached(path, shape, generate=lambda: generated(options))
        cuts = np.cumsum(list(sizes.values()))[:-1]
        return Parts(*(_labelled(part) for part in np.split(pictures, cuts)))

    def training_transform(self) -> Transform:
        """Random crop with a border of 2 pixels; no flip."""
        return cropped(self._pixels(), padding=2, flip=False)

    def evaluation_transform(self) -> Transform:
        """Normalise."""
        return plain(self._pixels())

    def _pixels(self) -> Pixels:
        return Pixels(self.image_size, self.native_size, self.mean, self.std)


def cache_path(root: Path, options: GlyphsSpec) -> Path:
    """The file of the pictures of these options, named by a hash of all that they depend on.

    Raises:
        DataError: a font is missing.
    """
    versions = [VERSION, np.__version__, PIL.__version__, features.version("freetype2")]
    makers = [dataclasses.asdict(options), versions, fonts_digest()]
    name = hashlib.sha256(json.dumps(makers).encode()).hexdigest()[:16]
    return root / "glyphs" / f"{name}.u8"


def generated(options: GlyphsSpec) -> np.ndarray:
    """All pictures, those for training first, then validation, then test.

    Each has random numbers of its own, derived from (seed, part, index), so that a part of another
    size begins with the same pictures.

    Returns:
        (N, 3, SIDE, SIDE), uint8.

    Raises:
        DataError: a font is missing or lacks a letter.
    """
    ranges = Ranges.of(options.difficulty)
    pictures = []
    for number, (part, size) in enumerate(options.sizes.items()):
        letters = np.stack([shapes(file) for file in font_files(part)])
        for index in range(size):
            turn, label = divmod(index, len(CLASSES))
            seed = derived_seed(options.seed, number, index)
            generator = np.random.Generator(np.random.PCG64(seed))
            letter = letters[turn % len(FACES[part]), label]
            pictures.append(draw(letter, ranges, generator=generator))
    return np.stack(pictures)


def _labelled(pictures: np.ndarray) -> TensorImages:
    labels = torch.arange(len(pictures)) % len(CLASSES)
    return TensorImages(torch.from_numpy(pictures), labels)


_log = logging.getLogger(__name__)


_DIGEST = hashlib.sha256().digest_size


def cached(path: Path, shape: tuple[int, ...], *, generate: Callable[[], np.ndarray]) -> np.ndarray:
    """The pictures in a file; they are generated and kept there unless it holds them already.

    A damaged file is told in the log and replaced.

    Args:
        path: of the file; its name must depend on everything that the pictures depend on.
        shape: of the pictures, uint8.
        generate: makes them.

    Raises:
        DataError: the file can be neither read nor written.
    """
    try:
        found = _verified(path.read_bytes(), shape) if path.exists() else None
        if found is not None:
            return found
        if path.exists():
            _log.warning("%s is damaged; its pictures are generated again", path)
        pictures = generate()
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = pictures.tobytes()
        write_whole(path, pixels + hashlib.sha256(pixels).digest())
    except OSError as error:
        raise DataError(
            f"data=glyphs cannot keep its pictures in {path} ({error.strerror or error}); free "
            "space, or set data.root=<folder that can be written>"
        ) from error
    return pictures


def _verified(data: bytes, shape: tuple[int, ...]) -> np.ndarray | None:
    pixels, digest = data[:-_DIGEST], data[-_DIGEST:]
    if len(pixels) != math.prod(shape) or hashlib.sha256(pixels).digest() != digest:
        return None
    return np.frombuffer(bytearray(pixels), dtype=np.uint8).reshape(shape)
