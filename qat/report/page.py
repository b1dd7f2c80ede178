"""One self-contained page: sections, tables and pictures in plain HTML, no script, no network."""

from collections.abc import Sequence
from html import escape

from qat.report.page_style import STYLE
from qat.report.tables import TextTable

# even if a text slipped through unescaped, the browser would load and run nothing
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def page(title: str, lead: str, sections: Sequence[tuple[str, str]]) -> str:
    """The whole document.

    Args:
        title: plain text.
        lead: HTML below it.
        sections: heading as plain text, and its HTML; headings are linked from the top.
    """
    links = "".join(
        f'<li><a href="#s{index}">{escape(heading)}</a></li>'
        for index, (heading, _) in enumerate(sections)
    )
    body = "".join(
        f'<section id="s{index}"><h2>{escape(heading)}</h2>{content}</section>'
        for index, (heading, content) in enumerate(sections)
    )
    nav = f"<nav aria-label='Sections'><ul>{links}</ul></nav>" if len(sections) > 1 else ""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>"
        f"<body><main><header><h1>{escape(title)}</h1>{lead}{nav}</header>{body}</main></body>"
        "</html>\n"
    )


def paragraph(text: str, *, kind: str = "") -> str:
    """A paragraph of plain text.

    Args:
        text: not escaped yet.
        kind: "warning" for what must not be overlooked, "note" for small print.
    """
    return f"<p{_class(kind)}>{escape(text)}</p>"


def bullets(texts: Sequence[str]) -> str:
    """A list of plain texts."""
    return f"<ul class='plain'>{''.join(f'<li>{escape(text)}</li>' for text in texts)}</ul>"


def table(content: TextTable) -> str:
    """A table that scrolls in its own box where the window is narrow."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in content.head)
    rows = "".join(
        f'<tr><th scope="row">{_breakable(row[0])}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in content.rows
    )
    caption = escape(content.caption)
    return (
        # not a <caption>: that is as wide as the table, and would scroll out of sight with it
        f'<p class="caption">{caption}</p>'
        f'<div class="scroll" role="region" tabindex="0" aria-label="{caption}">'
        f'<table{_class("numbers" if content.numeric else "")} aria-label="{caption}">'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def picture(svg: str, *, title: str, reading: str) -> str:
    """A figure with what it shows and how to read it.

    Args:
        svg: element, see `qat.report.svg`.
        title: plain text.
        reading: plain text.
    """
    words = f"<b>{escape(title)}</b> {escape(reading)}"
    return f"<figure>{svg}<figcaption>{words}</figcaption></figure>"


def gallery(pictures: Sequence[str]) -> str:
    """Pictures side by side, as many as fit."""
    return f'<div class="gallery">{"".join(pictures)}</div>'


def details(summary: str, content: str, *, is_open: bool = False) -> str:
    """What is read on demand only.

    Args:
        summary: plain text that opens it.
        content: HTML.
        is_open: from the start.
    """
    shown = " open" if is_open else ""
    return f"<details{shown}><summary>{escape(summary)}</summary>{content}</details>"


def _breakable(name: str) -> str:
    """A name that may wrap behind its underscores, not amid its words."""
    return escape(name).replace("_", "_<wbr>")


def _class(name: str) -> str:
    return f' class="{name}"' if name else ""
