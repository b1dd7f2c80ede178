"""Pictures of a page: inline in it, and as files beside it."""

from pathlib import Path
from typing import TYPE_CHECKING

from qat.report.figures.style import inline_svg, save_figure
from qat.report.page.html import Picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Pictures:
    """Turns figures into parts of a page, and writes each as PNG and SVG.

    Args:
        folder: of the files; None writes none.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._count = 0

    def add(self, figure: "Figure", name: str, *, title: str, reading: str) -> Picture:
        """The figure as a block of the page.

        Args:
            figure: in the house style.
            name: of its files, made safe and numbered.
            title: what it shows.
            reading: how to read it.
        """
        self._count += 1
        if self._folder is not None:
            save_figure(figure, self._folder / f"{self._count:02}-{safe_name(name)}")
        svg = inline_svg(figure, alt=f"{title} {reading}", prefix=f"f{self._count}")
        return Picture(svg=svg, title=title, reading=reading)


def safe_name(text: str) -> str:
    """A file name of letters, digits, - and _ only.

    >>> safe_name("../a b/c.d=1")
    'a-b-c-d-1'
    """
    kept = "".join(c if c.isascii() and (c.isalnum() or c == "_") else " " for c in text)
    return "-".join(kept.split())[:80] or "picture"
