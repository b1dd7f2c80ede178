"""How the site is built: `sphinx-build -W docs site`. Nothing it shows comes from the network."""

import importlib.metadata
import re
from typing import Any

project = "qat"
author = "The qat authors"
release = importlib.metadata.version("qat")
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["pictures/README.md"]
default_role = "code"
nitpicky = False
highlight_language = "text"

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

# docstrings are written for a terminal: their types stand in the signature
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_use_rtype = False
napoleon_use_ivar = True
napoleon_custom_sections = [("Source", "notes_style")]

html_theme = "pydata_sphinx_theme"
html_title = "qat"
html_show_sourcelink = False
html_copy_source = False
templates_path = ["look/templates"]
html_static_path = ["look/static"]
html_css_files = ["site.css"]
html_sidebars = {"**": ["contents.html"]}
html_theme_options: dict[str, Any] = {
    "show_prev_next": True,
    "navigation_with_keys": False,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": [],
    "footer_end": [],
    "navbar_center": [],  # the pages stand at the left, with what they are for
    "navbar_end": ["theme-switcher"],
    "primary_sidebar_end": [],
    "article_header_start": [],
}


def formulas(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Make what docstrings indent, formulas in plain letters, literal blocks; escape the rest."""
    shown: list[str] = []
    in_section = in_block = False
    for line in lines:
        in_section = in_section or line in ("Args:", "Attributes:", "Returns:", "Raises:")
        starts_block = line.startswith("    ") and not in_section
        if starts_block and not in_block:
            shown += ["::", ""]
        in_block = starts_block or (in_block and not line)
        is_code = in_block or line.lstrip().startswith((">>>", "..."))
        shown.append(line if is_code else re.sub(r"(?<![\\`])([|*])", r"\\\1", line))
    lines[:] = shown


def setup(app: Any) -> None:
    """Read docstrings before napoleon does."""
    app.connect("autodoc-process-docstring", formulas, priority=400)
