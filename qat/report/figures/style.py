"""Figure style, and how a figure is saved."""

import html
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qat.storage.atomic import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# distinguishable in print and for colour-blind readers (Okabe and Ito), dark ones first
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D31")
_INK = "#000000"
_CSS_PIXELS_PER_INCH = 96
_STYLE: dict[str, Any] = {
    "figure.dpi": 100,
    "savefig.dpi": 150,
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "legend.fontsize": 8,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.5,
    "legend.frameon": False,
    "svg.hashsalt": "qat",  # equal numbers give equal files
}


@contextmanager
def panels(
    rows: int = 1, columns: int = 1, *, width: float = 3.6, height: float = 2.8
) -> Iterator[tuple["Figure", Any]]:
    """A figure in the house style with its axes, (rows, columns) of them; no display is needed.

    Args:
        rows: number of rows of axes.
        columns: number of columns.
        width: of one panel, inches.
        height: of one panel, inches.

    Yields:
        The figure, and its axes as an array of shape (rows, columns).
    """
    import matplotlib as mpl

    from qat.report.figures.house_figure import HouseFigure

    style = _style()
    with mpl.rc_context(style):
        size = width * columns, height * rows
        figure = HouseFigure(style, figsize=size, layout="constrained")
        yield figure, figure.subplots(rows, columns, squeeze=False)


def _style() -> Any:
    from cycler import cycler

    return {**_STYLE, "axes.prop_cycle": cycler(color=COLORS)}


def save_figure(figure: "Figure", path: Path) -> list[Path]:
    """Write `path`.png and `path`.svg (the suffix of `path` is replaced); returns both."""
    import matplotlib as mpl

    _lay_out(figure)
    path.parent.mkdir(parents=True, exist_ok=True)
    # the date would make equal figures differ
    forms: dict[str, dict[str, None] | None] = {"png": None, "svg": {"Date": None}}
    for form, metadata in forms.items():
        drawing = io.BytesIO()
        with mpl.rc_context(_style()):
            figure.savefig(drawing, format=form, metadata=metadata)
        write_whole(path.with_suffix(f".{form}"), drawing.getvalue())
    return [path.with_suffix(f".{form}") for form in forms]


def inline_svg(figure: "Figure", *, alt: str, prefix: str) -> str:
    """The figure as an <svg> element with a transparent ground.

    Args:
        figure: drawn in the house style, black ink.
        alt: what the picture shows, for those who do not see it.
        prefix: letters and digits, of its own for each figure of a page: ids must be unique there.
    """
    import matplotlib as mpl

    _lay_out(figure)
    text = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "qat"}):
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    drawing = text.getvalue()
    body = drawing[drawing.index(">", drawing.index("<svg")) + 1 :]
    for noise in (r"<!--.*?-->", r"<metadata>.*?</metadata>", r"<style.*?</style>"):
        body = re.sub(noise, "", body, flags=re.DOTALL)
    body = re.sub(r'id="([^"]+)"', rf'id="{prefix}-\1"', body)
    body = re.sub(r'(href="|url\()#', rf"\1#{prefix}-", body).replace(_INK, "currentColor")
    body = re.sub(r">\s+<", "><", body)
    width, height = (round(inch * 72, 2) for inch in figure.get_size_inches())
    pixels = round(figure.get_figwidth() * _CSS_PIXELS_PER_INCH)
    return (
        f'<svg role="img" aria-label="{html.escape(alt)}" viewBox="0 0 {width:g} {height:g}" '
        f'style="max-width:{pixels}px" fill="currentColor">{body}'
    )


def _lay_out(figure: "Figure") -> None:
    """Give the axes their places for good; each saving would else find them again."""
    if (engine := figure.get_layout_engine()) is not None:
        engine.execute(figure)
        figure.set_layout_engine(None)


def plain(text: str) -> str:
    r"""Text that a figure shows as it is: one line, no formula, nothing that the font lacks.

    >>> print(plain("a$b$ _c"))
    a\$b\$ _c
    """
    line = " ".join(text.split())
    known = "".join(c if c.isprintable() and c <= "\u024f" else "?" for c in line)
    return known.replace("$", r"\$")
