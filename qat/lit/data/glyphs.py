"""Synthetic letters: the 26 capitals in the fonts inside matplotlib, distorted; no download."""

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import PIL
import torch
from PIL import features

from qat.glyphs_spec import CLASSES, GlyphsSpec
from qat.lit.data.dataset import TensorImages, Transform
from qat.lit.data.glyph_cache import cached
from qat.lit.data.glyph_drawing import SIDE, Ranges, draw
from qat.lit.data.glyph_fonts import FACES, font_files, fonts_digest, shapes
from qat.lit.data.layout import root_of
from qat.lit.data.module import ImageData
from qat.lit.data.sampler import derived_seed
from qat.lit.data.split import Parts
from qat.lit.data.transforms import Pixels, cropped, plain

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
