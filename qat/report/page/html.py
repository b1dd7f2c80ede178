"""HTML pages: blocks of content as data, filled into one template that escapes every text.

A page is self-contained: no script, no network, its style and pictures inside.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from jinja2 import Template


@dataclass(frozen=True, slots=True)
class Paragraph:
    """A paragraph: a "warning" must not be overlooked, a "note" is small print."""

    text: str
    kind: Literal["", "warning", "note"] = ""


@dataclass(frozen=True, slots=True)
class Heading:
    """A heading within a section."""

    text: str


@dataclass(frozen=True, slots=True)
class Bullets:
    """A list of texts."""

    texts: Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class TextTable:
    """A table of texts; it scrolls in its own box where the window is narrow.

    Attributes:
        caption: what it shows.
        head: names of the columns; the first one names the rows.
        rows: cells, as many as the head has.
        numeric: whether all but the first column are set to the right.
    """

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A figure with what it shows and how to read it.

    Attributes:
        svg: the element, see `qat.report.figures.style.inline_svg`; the only markup in a block.
        title: what it shows.
        reading: how to read it.
    """

    svg: str
    title: str
    reading: str


@dataclass(frozen=True, slots=True)
class Gallery:
    """Pictures side by side, as many as fit; wide ones below each other."""

    pictures: Sequence[Picture]
    is_wide: bool = False


@dataclass(frozen=True, slots=True)
class Details:
    """What is read on demand only, behind a summary that opens it."""

    summary: str
    content: "Sequence[Block]"


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a page; its title is linked from the top."""

    title: str
    content: "Sequence[Block]"


Block = Paragraph | Heading | Bullets | TextTable | Gallery | Details


def page(title: str, lead: Sequence[Block], sections: Sequence[Section] = ()) -> str:
    """The whole document.

    Args:
        title: of the page.
        lead: blocks below it.
        sections: in their order.
    """
    return _template().render(title=title, lead=lead, sections=sections)


@cache
def _template() -> "Template":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2")
