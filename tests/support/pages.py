"""What the pages hold: README.md and docs/, their blocks and the commands in them."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from support import ROOT

# index and contributing include other pages
_INCLUDING = ("index", "contributing")
PAGES = {
    "README": ROOT / "README.md",
    **{p.stem: p for p in sorted((ROOT / "docs").glob("*.md")) if p.stem not in _INCLUDING},
}


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block of a page: its language, its text and the line where it begins."""

    page: str
    line: int
    language: str
    text: str


@dataclass(frozen=True, slots=True)
class Command:
    """One command of a bash block: `a && b` is two.

    Attributes:
        page: name of the page.
        line: of the page.
        words: as the shell splits them.
        needs: what the page says that it needs, e.g. a network; empty for nothing.
    """

    page: str
    line: int
    words: tuple[str, ...]
    needs: str

    def __str__(self):
        return f"{self.page}:{self.line} {shlex.join(self.words)}"


def blocks(page, text=None):
    """Every fenced block of a page, in order."""
    text = PAGES[page].read_text(encoding="utf-8") if text is None else text
    fence = re.compile(r"^```(\S*)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
    return [
        Block(page, text.count("\n", 0, m.start()) + 2, m[1], m[2]) for m in fence.finditer(text)
    ]


def commands(page, text=None):
    """The commands of a page's bash blocks, in order."""
    found = []
    for block in blocks(page, text):
        if block.language == "bash":
            for offset, line in enumerate(block.text.splitlines()):
                found += _commands(page, block.line + offset, line)
    return found


def _commands(page, number, line):
    needs = re.search(r"\s# needs (.*)$", line)
    words, found = [], []
    for word in [*shlex.split(line, comments=True), "&&"]:
        if word != "&&":
            words.append(word)
        elif words:
            found.append(Command(page, number, tuple(words), needs[1] if needs else ""))
            words = []
    return found


def kind_and_arguments(command):
    """What a command runs, `train`, the name of a script, `pip`, ..., and its arguments."""
    first, *rest = command.words
    if first in ("python", ".venv/bin/python"):
        if rest[0] == "-m":
            return rest[1], rest[2:]
        assert (ROOT / rest[0]).is_file(), command
        return Path(rest[0]).stem, rest[1:]
    return first.removeprefix(".venv/bin/"), rest


def value_of(arguments, key, default=None):
    """The last value of `key=` among arguments."""
    found = [a.partition("=")[2] for a in arguments if a.startswith(f"{key}=")]
    return found[-1] if found else default


def photos(folder):
    """Images of two classes, the `photos` of the pages."""
    from PIL import Image

    for kind, shade in (("cat", 60), ("dog", 190)):
        (folder / kind).mkdir(parents=True)
        for number in range(20):
            colour = (shade, shade + number, 255 - shade)
            Image.new("RGB", (40 + number, 48), colour).save(folder / kind / f"{number}.png")


def stand_ins(folder, family):
    """Empty files and folders where those of a data set would lie below `folder`."""
    from qat.spec.data import FAMILIES

    layout = FAMILIES[family].layout
    home = folder / layout.homes[0]
    for need in layout.needs:
        (home / need).mkdir(parents=True, exist_ok=True)
    if layout.classes_in is not None:
        for name in ("a", "b"):
            (home / layout.classes_in / name).mkdir(parents=True, exist_ok=True)
