"""Rendering of a synthetic letter: its shape, random numbers and a difficulty give one picture."""

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
from PIL import Image, ImageFilter

from qat.data.glyphs.fonts import CANVAS, CAPITAL

SIDE = 32  # pixels of a picture
_FINE = 4  # letters are laid down on pixels that many times finer, then averaged
_HEIGHT = 19 / SIDE  # of an undistorted H, of the picture
_LUMA = np.array([0.299, 0.587, 0.114])
_CELLS = 8  # of the texture, along a side
_INKS = 16  # colours that are drawn until one is far enough from the background


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranges:
    """How far a picture may be from an upright, sharp letter on a flat background.

    Attributes:
        turn: largest angle in degrees, to both sides.
        shear: largest sideways slope.
        stretch: largest logarithm of width and of height.
        perspective: largest difference in depth between the middle and an edge, a fraction.
        shift: largest shift along x and y, as a fraction of the side.
        contrast: smallest difference in brightness of ink and background, 0..1.
        gradient: largest difference in colour between the middle and an edge, 0..1.
        texture: largest amplitude of the texture, 0..1.
        blur: largest standard deviation of the blur, in pixels.
        noise: largest standard deviation of the noise, 0..1.
    """

    turn: float
    shear: float
    stretch: float
    perspective: float
    shift: float
    contrast: float
    gradient: float
    texture: float
    blur: float
    noise: float

    @classmethod
    def of(cls, difficulty: float) -> Self:
        """The ranges of a difficulty in 0..1."""
        return cls(
            turn=30 * difficulty,
            shear=0.4 * difficulty,
            stretch=0.4 * difficulty,
            perspective=0.5 * difficulty,
            shift=0.2 * difficulty,
            contrast=0.6 - 0.5 * difficulty,
            gradient=0.4 * difficulty,
            texture=0.4 * difficulty,
            blur=2.0 * difficulty,
            noise=0.3 * difficulty,
        )


def draw(shape: np.ndarray, ranges: Ranges, *, generator: np.random.Generator) -> np.ndarray:
    """A picture of a letter: laid on a background in an ink of its own, blurred, with noise.

    Args:
        shape: (CANVAS, CANVAS), uint8, as of `glyph_fonts.shapes`.
        ranges: of the distortions; each is drawn uniformly.
        generator: all that is random.

    Returns:
        (3, SIDE, SIDE), uint8, RGB.
    """
    cover = _laid_down(shape, ranges, generator)[..., None]
    base = generator.uniform(0.1, 0.9, 3)
    paper = _background(base, ranges, generator)
    ink = _ink(base, ranges.contrast, generator)
    image = Image.fromarray(_to_bytes(paper + cover * (ink - paper)))
    blurred = image.filter(ImageFilter.GaussianBlur(ranges.blur * generator.random()))
    noise = generator.normal(0, ranges.noise * generator.random(), (SIDE, SIDE, 3))
    return _to_bytes(np.asarray(blurred) / 255 + noise).transpose(2, 0, 1)


def _laid_down(shape: np.ndarray, ranges: Ranges, generator: np.random.Generator) -> np.ndarray:
    """Share of the ink in each pixel, (SIDE, SIDE) in 0..1."""
    fine = SIDE * _FINE
    # both sides of the map in coordinates of -1..1, the letter as high in both
    there = _scaling(2 / fine, -1)
    back = _scaling(CANVAS / 2, CANVAS / 2)
    size = CAPITAL / CANVAS / _HEIGHT
    back[:2, :2] *= size
    matrix = back @ _distortion(ranges, generator) @ there
    plane = Image.fromarray(shape).transform(
        (fine, fine),
        Image.Transform.PERSPECTIVE,
        tuple((matrix / matrix[2, 2]).ravel()[:8]),
        Image.Resampling.BILINEAR,
    )
    return np.asarray(plane.reduce(_FINE)) / 255


def _scaling(scale: float, offset: float) -> np.ndarray:
    return np.array([[scale, 0, offset], [0, scale, offset], [0, 0, 1]])


def _distortion(ranges: Ranges, generator: np.random.Generator) -> np.ndarray:
    """Random map of the plane, (3, 3), homogeneous coordinates, picture -> letter."""
    draws = generator.uniform(-1, 1, 8)
    angle = math.radians(ranges.turn * draws[0])
    shear = ranges.shear * draws[1]
    width, height = np.exp(ranges.stretch * draws[2:4])
    right, down = 2 * ranges.shift * draws[4:6]
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    slant = np.array([[1, shear], [0, 1]])
    linear = np.diag([1 / width, 1 / height]) @ slant @ turn
    matrix = np.eye(3)
    matrix[:2, :2] = linear
    matrix[:2, 2] = linear @ [-right, -down]
    tilt = np.eye(3)
    tilt[2, :2] = ranges.perspective * draws[6:8] / 2
    return matrix @ tilt


def _background(base: np.ndarray, ranges: Ranges, generator: np.random.Generator) -> np.ndarray:
    """A gradient of colours around `base` under a smooth texture, (SIDE, SIDE, 3)."""
    angle = generator.uniform(0, 2 * math.pi)
    change = ranges.gradient * generator.uniform(-1, 1, 3)
    along = np.linspace(-1, 1, SIDE)
    slope = along[:, None] * math.sin(angle) + along[None, :] * math.cos(angle)
    cells = generator.integers(0, 256, (_CELLS, _CELLS, 3), dtype=np.uint8)
    smooth = Image.fromarray(cells).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    texture = ranges.texture * generator.random() * (np.asarray(smooth) / 127.5 - 1)
    background: np.ndarray = base + slope[..., None] * change + texture
    return background


def _ink(base: np.ndarray, contrast: float, generator: np.random.Generator) -> np.ndarray:
    """The first of some random colours whose brightness is far enough from that of `base`.

    The farthest if none is.
    """
    inks = generator.random((_INKS, 3))
    distances = np.abs((inks - base) @ _LUMA)
    far = distances >= contrast
    ink: np.ndarray = inks[np.argmax(far) if far.any() else np.argmax(distances)]
    return ink


def _to_bytes(levels: np.ndarray) -> np.ndarray:
    return (levels.clip(0, 1) * 255).round().astype(np.uint8)
