"""Contact sheet: the images of which a network is least certain, as one picture."""

import heapq
import os
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

from qat.data.image_files import UnreadableImageError, read_image
from qat.errors import DataError, shown
from qat.storage.atomic import whole_file

if TYPE_CHECKING:
    from qat.commands.predict import Prediction

_COLUMNS = 6
_SIDE, _GAP, _MARGIN = 176, 22, 32  # pixels of an image, between two, around all
_CAPTION, _TITLE = 66, 58  # pixels below an image, above all
_PAPER, _INK, _GREY, _EMPTY, _BAR = "#ffffff", "#1d2733", "#6b7785", "#eef0f3", "#2f6f9f"

Box = tuple[int, int]  # left and top of a tile


class LeastCertain:
    """The predictions of the lowest probability among any number, of which few are kept.

    Args:
        most: predictions that are kept, >= 1.

    Attributes:
        seen: images that were offered.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.seen = 0
        self._heap: list[tuple[float, int, Prediction]] = []

    def add(self, prediction: "Prediction") -> None:
        """Offer a prediction; that of a file that is no image is not kept."""
        if prediction.error:
            return
        self.seen += 1
        # of equal ones the first stay
        item = (-prediction.named[0][1], -self.seen, prediction)
        if len(self._heap) < self.most:
            heapq.heappush(self._heap, item)
        else:
            heapq.heappushpop(self._heap, item)

    @property
    def found(self) -> list["Prediction"]:
        """Those that are kept, the least certain first."""
        return [prediction for _, _, prediction in sorted(self._heap, reverse=True)]


def write_sheet(path: Path, least: LeastCertain, *, model: str, is_upright: bool) -> None:
    """Draw the least certain images with class, probability, runner-up and name below each.

    One image is in memory at a time.

    Args:
        path: of the PNG file, written whole or not at all.
        least: what is drawn; nothing is written of no image.
        model: what gave the answers, for the title.
        is_upright: turn images as their EXIF orientation says.

    Raises:
        DataError: the file cannot be written.
    """
    found = least.found
    if not found:
        return
    columns = min(_COLUMNS, len(found))
    rows = -(-len(found) // columns)
    width = 2 * _MARGIN + columns * (_SIDE + _GAP) - _GAP
    height = 2 * _MARGIN + _TITLE + rows * (_SIDE + _CAPTION + _GAP) - _GAP
    sheet = Image.new("RGB", (max(width, 2 * _MARGIN + 3 * _SIDE), height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    room = sheet.width - 2 * _MARGIN
    title = f"{len(found):,} least certain of {least.seen:,} images"
    _write(draw, (_MARGIN, _MARGIN - 6), title, 20, room, is_bold=True)
    _write(draw, (_MARGIN, _MARGIN + 21), model, 13, room, fill=_GREY)
    names = _names([prediction.path for prediction in found])
    for number, (prediction, name) in enumerate(zip(found, names, strict=True)):
        row, column = divmod(number, columns)
        left = _MARGIN + column * (_SIDE + _GAP)
        top = _MARGIN + _TITLE + row * (_SIDE + _CAPTION + _GAP)
        _paste(sheet, draw, (left, top), prediction.path, is_upright=is_upright)
        _caption(draw, (left, top + _SIDE + 6), prediction.named, name)
    try:
        with whole_file(path) as file:
            sheet.save(file, "PNG")
    except OSError as error:
        raise DataError(
            f"cannot write sheet={path}: {error.strerror or error}; free space or choose another"
        ) from None


def _paste(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, box: Box, path: Path, *, is_upright: bool
) -> None:
    """The whole image in its square, small ones in large pixels."""
    draw.rectangle((*box, box[0] + _SIDE - 1, box[1] + _SIDE - 1), fill=_EMPTY)
    try:
        image = read_image(str(path), is_upright=is_upright)
    except UnreadableImageError:  # it went since it was read; its place stays empty
        return
    scale = _SIDE / max(image.size)
    how = Image.Resampling.NEAREST if scale >= 2 else Image.Resampling.LANCZOS
    width, height = (max(1, round(side * scale)) for side in image.size)
    small = image.resize((width, height), how)
    sheet.paste(small, (box[0] + (_SIDE - width) // 2, box[1] + (_SIDE - height) // 2))


def _caption(
    draw: ImageDraw.ImageDraw, box: Box, named: Sequence[tuple[str, float]], name: str
) -> None:
    left, top = box
    share = named[0][1]
    draw.rectangle((left, top, left + _SIDE - 1, top + 3), fill=_EMPTY)
    draw.rectangle((left, top, left + round((_SIDE - 1) * share), top + 3), fill=_BAR)
    _class(draw, (left, top + 9), named[0], 14, fill=_INK, is_bold=True)
    if len(named) > 1:
        _class(draw, (left, top + 28), named[1], 12, fill=_GREY)
    _write(draw, (left, top + 45), name, 11, _SIDE, fill=_GREY)


def _class(
    draw: ImageDraw.ImageDraw,
    box: Box,
    named: tuple[str, float],
    size: int,
    *,
    fill: str,
    is_bold: bool = False,
) -> None:
    """A class on the left, its probability on the right."""
    number = f"{named[1]:.3f}"
    room = _SIDE - round(_font(size, is_bold).getlength(number))
    _write(draw, (box[0] + room, box[1]), number, size, _SIDE, fill=fill, is_bold=is_bold)
    _write(draw, box, named[0], size, room - 8, fill=fill, is_bold=is_bold)


def _write(
    draw: ImageDraw.ImageDraw,
    box: Box,
    text: str,
    size: int,
    room: int,
    *,
    fill: str = _INK,
    is_bold: bool = False,
) -> None:
    font = _font(size, is_bold)
    draw.text(box, _fitted(shown(text), font, room), font=font, fill=fill)


def _fitted(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, room: int) -> str:
    """A text of at most `room` pixels: its middle gives way, as both ends of a name tell."""
    kept, short = min(len(text), room), text  # a letter has a pixel
    while kept > 1 and font.getlength(short) > room:
        kept -= 1
        short = f"{text[: (kept + 1) // 2]}…{text[len(text) - kept // 2 :]}"
    return short


def _names(paths: Sequence[Path]) -> list[str]:
    """The paths below the folder that holds all of them."""
    home = os.path.commonpath([os.path.abspath(path.parent) for path in paths])
    return [os.path.relpath(os.path.abspath(path), home) for path in paths]


@cache
def _font(size: int, is_bold: bool) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """DejaVu Sans out of matplotlib, which has more letters than Pillow's own font."""
    found = find_spec("matplotlib")
    for folder in (found and found.submodule_search_locations) or ():
        name = "DejaVuSans-Bold.ttf" if is_bold else "DejaVuSans.ttf"
        file = Path(folder, "mpl-data", "fonts", "ttf", name)
        if file.is_file():
            return ImageFont.truetype(str(file), size)
    return ImageFont.load_default(size)
