"""One self-contained page: sections, tables and pictures in plain HTML, no script, no network."""

from collections.abc import Sequence
from html import escape

from qat.report.page.tables import TextTable

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
        svg: element, see `qat.report.figures.style`.
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


STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --soft: #565c64; --ground: #ffffff;
  --panel: #f5f6f8; --line: #d9dce1; --link: #0b5a94; --warn: #fdf1e3; --warnline: #c05a00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e7ea; --soft: #a8adb6; --ground: #15171a;
  --panel: #1e2125; --line: #3a3f46; --link: #7cc0f5; --warn: #33251a; --warnline: #e8914a; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; color: var(--ink); background: var(--ground);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 1240px; margin: 0 auto; padding: 1.2rem 1rem 3rem; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .4rem; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.2rem 0 .5rem; padding-top: .7rem;
  border-top: 1px solid var(--line); overflow-wrap: anywhere; }
h3 { font-size: 1.02rem; margin: 1.4rem 0 .3rem; overflow-wrap: anywhere; }
p { margin: .4rem 0 .8rem; max-width: 75ch; overflow-wrap: anywhere; }
a { color: var(--link); }
nav ul { list-style: none; padding: 0; margin: .6rem 0 0; display: flex; flex-wrap: wrap;
  gap: .3rem 1.1rem; }
nav a { display: inline-block; padding: .2rem 0; }
ul.plain { margin: .4rem 0 1rem; padding-left: 1.2rem; max-width: 75ch; }
ul.plain li { margin: .2rem 0; overflow-wrap: anywhere; }
.note { color: var(--soft); font-size: .9rem; }
.warning { background: var(--warn); border-left: 4px solid var(--warnline);
  padding: .5rem .8rem; }
.scroll { overflow-x: auto; margin: .4rem 0 1rem; border: 1px solid var(--line);
  border-radius: 6px; max-width: 100%; width: fit-content; }
.scroll:focus-visible, summary:focus-visible, a:focus-visible { outline: 2px solid var(--link); }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
.caption { color: var(--soft); font-size: .9rem; margin: 1rem 0 .3rem; }
th, td { padding: .38rem .7rem; text-align: left; vertical-align: top; }
thead th { background: var(--panel); border-bottom: 1px solid var(--line); white-space: nowrap;
  font-weight: 600; vertical-align: bottom; }
tbody th { font-weight: 600; min-width: 8.5rem; max-width: min(22rem, 44vw);
  overflow-wrap: anywhere; }
tbody th, thead th:first-child { position: sticky; left: 0; background: var(--ground); z-index: 1; }
thead th:first-child { background: var(--panel); }
tbody tr + tr > * { border-top: 1px solid var(--line); }
.numbers td { text-align: right; white-space: nowrap; }
.numbers thead th:not(:first-child) { text-align: right; }
td { overflow-wrap: break-word; }
.gallery { display: grid; gap: 1rem; align-items: start; margin: .6rem 0 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 350px), 1fr)); }
figure { margin: 0; padding: .8rem; background: var(--panel); border: 1px solid var(--line);
  border-radius: 6px; min-width: 0; }
figure svg { display: block; width: 100%; height: auto; margin: 0 auto; }
figure svg * { stroke-linejoin: round; stroke-linecap: butt; }
figcaption { font-size: .86rem; color: var(--soft); margin-top: .5rem; overflow-wrap: anywhere; }
figcaption b { color: var(--ink); }
details { border: 1px solid var(--line); border-radius: 6px; padding: 0 .8rem; margin: .5rem 0; }
summary { cursor: pointer; padding: .5rem 0; font-weight: 600; overflow-wrap: anywhere; }
@media print { details { break-inside: avoid; } .scroll { overflow: visible; } }
""".strip()
