"""A figure as inline SVG whose ink takes the page's colour, so that it reads in light and dark."""

import html
import io
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_INK = "#000000"
_CSS_PIXELS_PER_INCH = 96


def inline_svg(figure: "Figure", *, alt: str, prefix: str) -> str:
    """The figure as an <svg> element with a transparent ground.

    Args:
        figure: drawn in the house style, black ink.
        alt: what the picture shows, for those who do not see it.
        prefix: letters and digits, of its own for each figure of a page: ids must be unique there.
    """
    import matplotlib as mpl

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


def plain(text: str) -> str:
    r"""Text that a figure shows as it is: one line, no formula, nothing that the font lacks.

    >>> print(plain("a$b$ _c"))
    a\$b\$ _c
    """
    line = " ".join(text.split())
    known = "".join(c if c.isprintable() and c <= "\u024f" else "?" for c in line)
    return known.replace("$", r"\$")
