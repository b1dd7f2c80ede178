"""The page of results: every card of a folder with the notes that introduce and judge it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qat.errors import DataError
from qat.report.cards.card import read_card
from qat.report.cards.card_table import card_table

_MARK = "<!-- written from the cards by scripts/report.py cards=FOLDER fill=FILE; not by hand -->"
_HEAD = f"""# Results

{_MARK}

Every number below comes from a card, `results/NAME.yaml`, and every card was written by
`scripts/report.py` from finished runs; tests recompute the cards, compare them with this page and
train one more seed of the cheapest row. A card holds the command of each row, which begins a
network with the weights, order and augmentation of its seed.

How to read a row: accuracies are mean ± standard deviation over seeds, on the test part, which is
read once per run. *Last epoch* is what the run ended with, *selected epoch* the one that was best
on validation. The difference is paired by seed, with its 95 % interval; its p is corrected for the
number of rows of the table. A claim *holds* if its corrected p is below 0.05 and the sign is right;
*within noise* says that these seeds do not tell, not that two networks are equal.

Everything here was measured on CPUs, on small images. What was measured of time and size is on
the page of benchmarks.
"""


def is_results_page(page: str) -> bool:
    """Whether a page was written by `results_page`, and may be written anew."""
    return _MARK in page


def results_page(folder: Path) -> str:
    """The page of all cards of a folder, in the order that their notes give.

    Raises:
        DataError: there is no card, or one of them is damaged or has notes of another form.
    """
    paths = sorted(folder.glob("*.yaml"))
    if not paths:
        raise DataError(f"cards={folder} holds no card; write some with scripts/report.py RUNS")
    cards = [(path, read_card(path)) for path in paths]
    cards.sort(key=lambda pair: (_note(pair[0], pair[1], "order", 1e9), pair[0].name))
    return "\n".join([_HEAD, *(_section(path, card) for path, card in cards)])


def _section(path: Path, card: Mapping[str, Any]) -> str:
    heading = _note(path, card, "heading", str(card["title"]))
    before, after = (_note(path, card, key, "").strip() for key in ("before", "after"))
    origin = f"Card: `results/{path.name}`."
    parts = [f"## {heading}", before, card_table(card).strip(), after, origin]
    return "\n\n".join(part for part in parts if part) + "\n"


def _note(path: Path, card: Mapping[str, Any], key: str, default: Any) -> Any:
    """One note of a card.

    Raises:
        DataError: it is of another type than the default.
    """
    notes = card.get("notes") or {}
    known = {"order", "heading", "before", "after"}
    kind = (int, float) if isinstance(default, float) else str
    value = notes.get(key, default) if isinstance(notes, Mapping) else None
    if not isinstance(value, kind) or not set(notes) <= known:
        raise DataError(f"{path}: notes may hold order, a number, and the texts heading, before, "
                        "after")  # fmt: skip
    return value
