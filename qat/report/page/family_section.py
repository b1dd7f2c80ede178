"""Family section: one data set and network, what was reached, how surely, at what cost."""

from collections.abc import Mapping, Sequence
from typing import Any

from qat.report.compare.comparison import Row, State, claims_of, compare
from qat.report.compare.pareto import Point
from qat.report.compare.statistics import Summary
from qat.report.compare.wording import least_to_most, points
from qat.report.page.curve_section import cost_pictures, curve_pictures
from qat.report.page.group_section import group_section
from qat.report.page.html import Block, Bullets, Details, Gallery, Heading, Paragraph
from qat.report.page.pictures import Pictures
from qat.report.page.tables import claim_table, comparison_table, cost_table
from qat.report.runs.grouping import Family
from qat.report.runs.origins import warnings_of

_VERDICTS = {
    "higher": "Above {base}, beyond the noise of the seeds (points)",
    "lower": "Below {base}, beyond the noise of the seeds (points)",
    "within noise": "These seeds cannot tell from {base} (points)",
    "one seed": "One common seed with {base}, which says nothing about noise (points)",
    "no common seed": "No common seed with {base}, so no comparison",
}
_EPOCH = {"last": "the last epoch", "selected": "the epoch selected on validation"}


def family_section(
    family: Family,
    pictures: Pictures,
    *,
    reference: str | None = None,
    tuned_key: str | None = None,
    state: State = "last",
    claims: Sequence[str] = (),
    others: Sequence[Point] = (),
) -> list[Block]:
    """Everything about one family.

    Args:
        family: groups with finished runs.
        pictures: where figures go.
        reference: label of the group that the others are compared with.
        tuned_key: that was tuned, if one was.
        state: which epoch the first table judges; the other one is below it.
        claims: texts `BETTER > WORSE` about the groups.
        others: points of the literature.
    """
    rows = compare(family.groups, reference=reference, state=state)
    warnings = [*warnings_of(family.groups), *tuning_warnings(rows, tuned_key)]
    other: State = "selected" if state == "last" else "last"
    again = compare(family.groups, reference=reference, state=other)
    parts: list[Block] = [Paragraph(warning, "warning") for warning in warnings]
    parts += [Bullets(readings(rows)), comparison_table(rows, caption=_caption(state))]
    if any(row.p is not None for row in rows):
        parts.append(Paragraph(_UNCORRECTED, "note"))
    if any(row.test for row in again):
        second = comparison_table(again, caption=_caption(other))
        parts.append(Details(f"The same at {_EPOCH[other]}", [second]))
    if claims:
        parts.append(claim_table(claims_of(family.groups, claims, state=state)))
    parts.append(cost_table(rows, key=tuned_key))
    ordered = sorted(rows, key=lambda row: not row.is_reference)
    shown = [
        *curve_pictures([row.group for row in ordered], pictures, name=family.title),
        *cost_pictures(ordered, pictures, name=family.title, others=others),
    ]
    return [*parts, Gallery(shown), *_layers(rows, pictures, state)]


# each network has pictures of its own; a page with hundreds opens slowly
MOST_BY_LAYER = 12
_UNCORRECTED = (
    "p is corrected for all rows, the intervals are not: one may leave out 0 where the reading "
    "says within noise."
)
_UNEQUAL = (
    "Not every network was tried with equally many values of {key}, but with {counts}, as the last "
    "column of the costs tells: what was tuned less may look worse than it is."
)
_AT_END = (
    "The best {key} lies at the end of the tried range for {count} of {all} networks, as the last "
    "column of the costs tells: a value beyond it may be better still."
)
_FEW = "Of {count} networks {most} are shown: the reference and the best on validation."
_LAYERS = (
    "Open a network to see what each of its layers did: learned activation steps, weights that "
    "moved between levels, the weights against their grid, and which classes it confuses."
)


def tuning_warnings(rows: Sequence[Row], key: str | None) -> list[str]:
    """Sentences on what tuning may have missed.

    Args:
        rows: of a comparison.
        key: that was tuned; None for none.
    """
    if key is None:
        return []
    found = []
    counts = {row.group.tried for row in rows}
    if len(counts) > 1:
        found.append(_UNEQUAL.format(key=key, counts=least_to_most(counts)))
    ends = sum(row.group.is_at_end(key) for row in rows)
    if ends:
        found.append(_AT_END.format(key=key, count=ends, all=len(rows)))
    return found


def _layers(rows: Sequence[Row], pictures: Pictures, state: State) -> list[Block]:
    """The reference and the best on validation, each to be opened, in the order of the rows."""
    best = sorted(rows, key=lambda row: -row.validation.mean if row.validation else 1.0)
    chosen = sorted(best, key=lambda row: not row.is_reference)[:MOST_BY_LAYER]
    parts: list[Block] = [Heading("Layer by layer"), Paragraph(_LAYERS)]
    if len(chosen) < len(rows):
        parts.append(Paragraph(_FEW.format(count=len(rows), most=len(chosen))))
    for row in rows:
        if row in chosen:
            group = row.group
            parts.append(Details(group.label, group_section(group, pictures, state=state)))
    return parts


def csv_rows(
    family: Family, *, reference: str | None, tuned_key: str | None
) -> list[dict[str, Any]]:
    """All numbers of the tables in full, a row per group."""
    found: list[dict[str, Any]] = [
        {"family": family.title, "network": g.label, "key": g.key, "seeds": len(g.finished)}
        for g in family.groups
    ]
    for state in ("last", "selected"):
        for line, row in zip(
            found, compare(family.groups, reference=reference, state=state), strict=True
        ):
            line["is_reference"] = row.is_reference
            line |= _summary_cells(f"{state}_test_acc", row.test)
            line |= _summary_cells(f"{state}_val_acc", row.validation)
            gap = row.difference
            low, high = gap.interval if gap and gap.interval else (None, None)
            line |= {
                f"{state}_difference": gap and gap.mean,
                f"{state}_difference_pairs": gap and gap.n,
                f"{state}_difference_low": low,
                f"{state}_difference_high": high,
                f"{state}_p": gap and gap.p,
                f"{state}_p_holm": row.p,
            }
            costs = ("bits", "bytes", "float_bytes", "bops", "ace", "wall_seconds")
            line |= {key: row.cost(key) for key in costs}
            line |= {f"tried_{tuned_key}": row.group.tried} if tuned_key else {}
    return found


def readings(rows: Sequence[Row]) -> list[str]:
    """The comparison in a few sentences, one per verdict, with differences in points."""
    base = next(row.group.label for row in rows if row.is_reference)
    found = []
    for verdict, words in _VERDICTS.items():
        members = [row for row in rows if row.verdict == verdict]
        named = ", ".join(
            f"{row.group.label} ({points(row.difference.mean)})"
            if row.difference
            else row.group.label
            for row in members
        )
        if members:
            found.append(f"{words.format(base=base)}: {named}.")
    return found


def _caption(state: State) -> str:
    return (
        f"Test accuracy at {_EPOCH[state]}: mean ± standard deviation over the seeds; differences "
        "to the reference in percentage points, paired by seed."
    )


def _summary_cells(name: str, summary: Summary | None) -> Mapping[str, float | None]:
    interval = summary.interval if summary else None
    prediction = summary.prediction if summary else None
    return {
        f"{name}_mean": summary.mean if summary else None,
        f"{name}_sd": summary.sd if summary else None,
        f"{name}_low": interval.low if interval else None,
        f"{name}_high": interval.high if interval else None,
        f"{name}_predicted_low": prediction.low if prediction else None,
        f"{name}_predicted_high": prediction.high if prediction else None,
    }
