"""Result card: what was measured of one family of runs, with all that it takes to repeat it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from qat.errors import CheckpointError, DataError
from qat.report.compare.comparison import Claim, Row, State, claims_of, compare
from qat.report.compare.statistics import Difference, Interval, Summary, mean
from qat.report.runs.grouping import Family
from qat.report.runs.origins import origins_of
from qat.report.runs.recipe import recipe
from qat.spec.sweep import TunedBy
from qat.storage.atomic import write_whole
from qat.storage.run_files import read_yaml

STATES: tuple[State, ...] = ("last", "selected")
_HEAD = (
    "# Written by scripts/report.py from the runs; only `notes` are by hand. "
    "Accuracies are fractions.\n"
)
_DIGITS = 6  # of a fraction: a test part of a million images would need no more
_KEYS = {"title", "reference", "tuned", "origins", "runs", "seconds", "rows", "claims"}
_COSTS = ("bits", "bytes", "float_bytes", "bops")


def card_of(
    family: Family,
    *,
    reference: str | None = None,
    tuned_key: str | None = None,
    tuned_by: TunedBy = "mean",
    claims: Sequence[str] = (),
    commit: str | None = None,
) -> dict[str, Any]:
    """The card of a family of finished runs, as plain values.

    Args:
        family: groups with finished runs.
        reference: label of the group that the others are compared with; None for the float one.
        tuned_key: that was tuned on validation, if one was.
        tuned_by: whether by the mean of the seeds or by the worst one.
        claims: texts `BETTER > WORSE` about the groups.
        commit: of the code, for runs that do not hold it.

    Raises:
        DataError: a row of runs of different code, threads or machines, or runs that do not hold
            their code.
        SpecError: a claim is about no group.
    """
    rows = {state: compare(family.groups, reference=reference, state=state) for state in STATES}
    runs = {run.folder: run for group in family.groups for run in group.all_runs}
    return {
        "title": family.title,
        "reference": next(row.group.label for row in rows["last"] if row.is_reference),
        "tuned": tuned_key,
        **({"tuned_by": tuned_by} if tuned_key and tuned_by != "mean" else {}),
        "origins": origins_of(family.groups, commit),
        "runs": len(runs),
        "seconds": round(sum(run.number("wall_seconds") or 0.0 for run in runs.values())),
        "rows": [
            _row(last, selected, tuned_key)
            for last, selected in zip(rows["last"], rows["selected"], strict=True)
        ],
        "claims": [_claim(claim) for claim in claims_of(family.groups, claims, state="last")],
    }


def write_card(path: Path, card: Mapping[str, Any]) -> None:
    """Write a card as YAML; equal cards give equal files, and notes that a file has are kept."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(dict(card), sort_keys=False, allow_unicode=True, width=100)
    write_whole(path, _HEAD + text + _notes(path))


def _notes(path: Path) -> str:
    """The notes of a card that is written anew, as they stand there."""
    earlier = path.read_text(encoding="utf-8") if path.is_file() else ""
    start = earlier.find("\nnotes:\n")
    return earlier[start + 1 :] if start >= 0 else ""


def read_card(path: Path) -> dict[str, Any]:
    """A card out of its file.

    Raises:
        DataError: it is missing, damaged or no card.
    """
    try:
        card = read_yaml(path)
    except CheckpointError as error:
        raise DataError(f"{path} is no card: {error}") from None
    if not isinstance(card.get("rows"), list) or not card.keys() >= _KEYS:
        raise DataError(f"{path} is no card; write one with scripts/report.py RUNS card={path}")
    return card


def _row(last: Row, selected: Row, tuned_key: str | None) -> dict[str, Any]:
    group = last.group
    first = group.finished[0]
    tuned = {tuned_key: first.config.get(tuned_key), "tried": group.tried} if tuned_key else None
    wall = list(group.values("wall_seconds").values())
    return {
        "label": group.label,
        "commands": recipe(group.finished),
        "config": group.key,
        "seeds": [run.seed for run in group.finished],
        "tuned": tuned,
        "last": _state(last, "last"),
        "selected": _state(selected, "selected"),
        "cost": {key: _number(last.cost(key)) for key in _COSTS},
        "seconds": round(mean(wall), 1) if wall else None,
    }


def _state(row: Row, state: State) -> dict[str, Any] | None:
    values = list(row.group.values(state, "test_acc").values())
    if row.test is None:
        return None
    gap = row.difference
    return {
        "test": {"values": [_number(v) for v in values], **_summary(row.test)},
        "validation": _summary(row.validation),
        "difference": gap and _difference(gap, row.p),
    }


def _claim(claim: Claim) -> dict[str, Any]:
    gap = claim.difference
    return {
        "better": claim.better,
        "worse": claim.worse,
        "seeds": gap.n if gap else 0,
        "difference": gap and _difference(gap, claim.p),
        "reading": claim.reading,
    }


def _difference(gap: Difference, corrected: float | None) -> dict[str, Any]:
    return {
        "mean": _number(gap.mean),
        "interval": _interval(gap.interval),
        "p": gap.p if gap.p is None else float(f"{gap.p:.3g}"),
        "p_corrected": corrected if corrected is None else float(f"{corrected:.3g}"),
    }


def _summary(summary: Summary | None) -> dict[str, Any]:
    if summary is None:
        return {}
    return {
        "mean": _number(summary.mean),
        "sd": _number(summary.sd),
        "interval": _interval(summary.interval),
        "prediction": _interval(summary.prediction),
    }


def _interval(interval: Interval | None) -> list[Any] | None:
    return None if interval is None else [_number(interval.low), _number(interval.high)]


def _number(value: float | None) -> float | int | None:
    if value is None:
        return None
    return int(value) if float(value).is_integer() else round(value, _DIGITS)
