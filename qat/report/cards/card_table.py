"""Card tables in Markdown, and pages of Markdown whose tables come from cards."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qat.errors import DataError
from qat.report.cards.card import read_card
from qat.report.compare.wording import NOTHING, duration, grouped, probability

_BLOCK = re.compile(
    r"(?P<open><!-- card: (?P<path>\S+)(?P<rows> rows)? -->\n)"
    r"(?P<body>(?:(?!<!-- card:).)*?)"  # not beyond the next: unclosed ones would cost a square
    r"(?P<close><!-- end of card -->)",
    re.S,
)


def with_tables(page: str, folder: Path) -> str:
    """A page of Markdown with the table of each card between its two comments.

    `<!-- card: results/NAME.yaml -->` and `<!-- end of card -->` stand on lines of their own; with
    ` rows` behind the path claims and origin are left out.

    Args:
        page: text.
        folder: that the cards' paths start from.

    Raises:
        DataError: a card is missing or damaged, or a comment has no end.
    """
    if len(_BLOCK.findall(page)) != page.count("<!-- card:"):
        raise DataError("a comment `card:` has no `<!-- end of card -->` behind it; add it")

    def filled(match: re.Match[str]) -> str:
        card = read_card(folder / match["path"])
        table = card_rows(card) if match["rows"] else card_table(card)
        return f"{match['open']}{table}{match['close']}"

    return _BLOCK.sub(filled, page)


def has_tables(page: str) -> bool:
    """Whether a page of Markdown has a place for a card's table."""
    return "<!-- card:" in page


def card_table(card: Mapping[str, Any]) -> str:
    """A card as Markdown: rows, claims, and a line on how they were made."""
    return "\n".join([card_rows(card).rstrip("\n"), *_claims(card), "", _origin(card), ""])


def card_rows(card: Mapping[str, Any]) -> str:
    """The rows of a card as a table of Markdown."""
    tuned = card.get("tuned")
    head = ["network", *([f"`{tuned}`"] if tuned else []), "seeds", "last epoch, test %"]
    head += [f"difference to `{card['reference']}`", "p", "selected epoch, test %", "bytes"]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    lines += [f"| {' | '.join(_cells(row, tuned))} |" for row in card["rows"]]
    return "\n".join([*lines, ""])


def _claims(card: Mapping[str, Any]) -> list[str]:
    if not card.get("claims"):
        return []
    head = ["claim", "seeds", "difference", "p", "reading"]
    lines = ["", f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for claim in card["claims"]:
        gap = claim["difference"] or {}
        p = gap.get("p_corrected")
        cells = [
            f"{_code(claim['better'])} > {_code(claim['worse'])}",
            str(claim["seeds"]),
            _difference(gap) if gap else NOTHING,
            NOTHING if p is None else probability(p),
            claim["reading"],
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _cells(row: Mapping[str, Any], tuned: str | None) -> list[str]:
    last = row["last"] or {}
    gap = last.get("difference")
    p = gap and gap["p_corrected"]
    return [
        _code(row["label"]),
        *([str(row["tuned"][tuned])] if tuned else []),
        str(len(row["seeds"])),
        _spread(row["last"]),
        NOTHING if not gap else _difference(gap),
        NOTHING if p is None else probability(p),
        _spread(row["selected"]),
        grouped(row["cost"]["bytes"]),
    ]


def _code(label: str) -> str:
    """A label as code in a cell: neither end may come from it."""
    return f"`{label.replace('`', ' ').replace('|', '/')}`"


def _spread(state: Mapping[str, Any] | None) -> str:
    if not state:
        return NOTHING
    test = state["test"]
    return f"{100 * test['mean']:.2f}" + (f" ± {100 * test['sd']:.2f}" if test["sd"] else "")


def _difference(gap: Mapping[str, Any]) -> str:
    inside = (
        ""
        if not gap["interval"]
        else " [{:+.2f}, {:+.2f}]".format(*(100 * end for end in gap["interval"]))
    )
    return f"{100 * gap['mean']:+z.2f}{inside}"


def _origin(card: Mapping[str, Any]) -> str:
    # the rows of the most common origin need no names, those of others only what is other there
    *named, most = sorted(card["origins"], key=lambda origin: len(origin["rows"]))
    common = _facts(most)
    shown = ("processor", "threads", "torch", "commit")
    told = [
        f"{card['title']}: mean ± standard deviation over seeds; differences paired by seed with "
        "their 95 % interval, which is not corrected; p of the paired t test is, for the table "
        "(Holm).",
        *_tuning(card),
        f"{card['runs']} runs, {duration(card['seconds'])} in all.",
        f"{', '.join(common[key] for key in shown if key in common)}.",
    ]
    for origin in named:
        other = [fact for key, fact in _facts(origin).items() if fact != common.get(key)]
        rows, found = ", ".join(map(_code, origin["rows"])), ", ".join(other)
        told.append(f"{rows}: {found or 'sources ' + str(origin['code'].get('sources'))}.")
    return " ".join(told)


def _tuning(card: Mapping[str, Any]) -> list[str]:
    tried = sorted({row["tuned"]["tried"] for row in card["rows"] if row["tuned"]})
    if not tried:
        return []
    told = "last epoch, by the worst seed" if card.get("tuned_by") == "worst" else "last epoch"
    many = str(tried[0]) if len(tried) == 1 else f"{tried[0]} to {tried[-1]}"
    return [f"`{card['tuned']}` is the best of {many} values on validation, {told}."]


def _facts(origin: Mapping[str, Any]) -> dict[str, str]:
    """All that tells an origin from others, in words."""
    threads, code, place = origin["threads"], origin["code"], origin["machine"]
    return {
        "processor": place["processor"],
        "threads": f"{threads} thread{'s' * (threads != 1)} each",
        **{name: f"{name} {number}" for name, number in (origin["versions"] or {}).items()},
        "commit": f"commit {code['commit']}",
        "cores": f"{place.get('cores')} cores",
        "system": str(place.get("system")),
    }
