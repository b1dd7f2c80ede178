"""Fonts inside matplotlib: which belong to which part, and the shapes of their letters.

The parts share no typeface family: DejaVu (Bitstream Vera) trains, STIX (after Times) validates,
Computer Modern (after Monotype Modern) tests. Left out are fonts without the letters: DejaVu
Display, the STIX sizes and non-Unicode shapes, cmex10, cmsy10; LastResort, where every character
is a box; and cmmi10, whose capitals are those of an italic set for formulas.
"""

import hashlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from qat.errors import DataError
from qat.spec.data import CLASSES

FACES: dict[str, tuple[str, ...]] = {
    "train": (
        *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique"),
        *("DejaVuSansMono", "DejaVuSansMono-Bold"),
        *("DejaVuSansMono-Oblique", "DejaVuSansMono-BoldOblique"),
        *("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic"),
    ),
    "validation": ("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta"),
    "test": ("cmr10", "cmb10", "cmti10", "cmss10", "cmtt10"),
}
CANVAS = 128  # side in pixels of a shape, with the letter in the middle
CAPITAL = 64  # height in pixels of an H


def font_files(part: str) -> list[Path]:
    """The font files of a part.

    Raises:
        DataError: matplotlib came without one of them.
    """
    import matplotlib

    folder = Path(matplotlib.get_data_path(), "fonts", "ttf")
    files = [folder / f"{face}.ttf" for face in FACES[part]]
    for file in files:
        if not file.is_file():
            raise DataError(f"data=glyphs needs the font {file}; reinstall matplotlib with it")
    return files


def fonts_digest() -> str:
    """SHA-256 of all font files, in hexadecimal.

    Raises:
        DataError: as `font_files`.
    """
    files = [file for part in FACES for file in font_files(part)]
    digests = [hashlib.sha256(file.read_bytes()).digest() for file in files]
    return hashlib.sha256(b"".join(digests)).hexdigest()


def shapes(file: Path) -> np.ndarray:
    """Every class's letter in the face of a font file, in the middle of its canvas.

    Returns:
        (K, CANVAS, CANVAS), uint8, 255 in the letter and 0 outside.

    Raises:
        DataError: the font lacks a letter.
    """
    from matplotlib.ft2font import FT2Font

    known = FT2Font(str(file)).get_charmap()
    missing = [name for name in CLASSES if ord(name) not in known]
    if missing:
        raise DataError(f"the font {file} lacks {''.join(missing)}; reinstall matplotlib")
    # the basic layout: the other one depends on a library that Pillow may come without
    basic = ImageFont.Layout.BASIC
    _, top, _, bottom = ImageFont.truetype(file, 1000, layout_engine=basic).getbbox("H")
    font = ImageFont.truetype(file, 1000 * CAPITAL / (bottom - top), layout_engine=basic)
    return np.stack([_shape(name, font) for name in CLASSES])


def _shape(name: str, font: ImageFont.FreeTypeFont) -> np.ndarray:
    image = Image.new("L", (2 * CANVAS, 2 * CANVAS))
    ImageDraw.Draw(image).text((CANVAS // 2, CANVAS // 2), name, font=font, fill=255)
    # where the ink is: the font's own box is larger by its hinting
    letter = image.crop(image.getbbox())
    canvas = Image.new("L", (CANVAS, CANVAS))
    canvas.paste(letter, ((CANVAS - letter.width) // 2, (CANVAS - letter.height) // 2))
    return np.asarray(canvas)
