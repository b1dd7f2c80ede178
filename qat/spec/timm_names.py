"""Names of timm's networks, read from its source: importing timm takes seconds, and PyTorch."""

import difflib
import re
from collections.abc import Iterable
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from qat.errors import SpecError

_REGISTERED = re.compile(r"^@register_model\s+def (\w+)\(", re.MULTILINE)


def check_timm_name(name: str, told: str) -> None:
    """Refuse a name that the installed timm cannot know.

    Only what its source does not even mention is refused: of names that timm keeps for what it has
    renamed, and of tags, timm itself tells.

    Args:
        name: with or without a pretrained tag.
        told: what a message says of a name that is none.

    Raises:
        SpecError: there is no such network; those that come near are named.
    """
    source, stem = _source(), name.partition(".")[0]
    names = _names()
    if names and stem not in names and not re.search(rf"[\"']{re.escape(stem)}[\"'.]", source):
        raise SpecError(f"{told}; {near(name, names)}")


def near(name: str, names: Iterable[str]) -> str:
    """The cure for a network's name that is none: those that come near."""
    close = difflib.get_close_matches(name.partition(".")[0], names, n=3)
    return f"did you mean {', '.join(close)}?" if close else "see its list_models()"


@cache
def _names() -> list[str]:
    return _REGISTERED.findall(_source())


@cache
def _source() -> str:
    """Source of all networks of the installed timm, "" if there is none."""
    found = find_spec("timm")
    folders = (found and found.submodule_search_locations) or ()
    files = [path for folder in folders for path in sorted(Path(folder, "models").rglob("*.py"))]
    return "\n".join(path.read_text(encoding="utf-8") for path in files)
