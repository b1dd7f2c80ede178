"""The built site loads nothing from the network. `.ci/run` builds it and asks for this file."""

import pytest

from support import ROOT
from support.pages import PAGES
from support.site import loaded_from_elsewhere

SITE = ROOT / "site"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.html", '<script src="https://cdn.example/a.js"></script>'),
        ("a.html", '<link rel="stylesheet" href="//fonts.example/css">'),
        ("a.html", '<img srcset="a.png 1x, http://example/b.png 2x">'),
        ("a.html", "<style>@import 'https://example/a.css';</style>"),
        ("a.html", "<div style='background: url(http://example/a.png)'></div>"),
        ("a.css", '@font-face { src: url("https://example/a.woff2") }'),
        ("a.css", "@import url(https://example/a.css);"),
    ],
)
def test_what_is_loaded_from_elsewhere_is_found(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert len(loaded_from_elsewhere(tmp_path / name)) == 1


def test_links_and_own_files_are_let_through(tmp_path):
    (tmp_path / "a.html").write_text(
        '<a href="https://example.org">there</a><img src="_images/a.png">'
        '<link rel="canonical" href="https://example.org/a">'
        "<style>a { background: url('data:image/png;base64,AA') }</style>"
    )
    assert loaded_from_elsewhere(tmp_path / "a.html") == []


@pytest.mark.skipif(not SITE.is_dir(), reason="the site is not built here; README has the command")
def test_the_site_loads_nothing_from_the_network():
    pages = [*SITE.rglob("*.html"), *SITE.rglob("*.css")]
    assert {f"{page}.html" for page in PAGES if page != "README"} <= {p.name for p in pages}
    found = {p.relative_to(SITE).as_posix(): loaded_from_elsewhere(p) for p in pages}
    assert not {name: addresses for name, addresses in found.items() if addresses}
