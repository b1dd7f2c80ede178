"""Sweep page: many runs on one page, its pictures as files, its numbers as CSV."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qat.errors import SpecError
from qat.report.compare.comparison import State, compare
from qat.report.compare.literature import points_beside
from qat.report.compare.pareto import Point
from qat.report.compare.wording import least_to_most
from qat.report.page.family_section import csv_rows, family_section
from qat.report.page.html import Block, Paragraph, Section, page
from qat.report.page.pictures import Pictures
from qat.report.page.tables import problem_table
from qat.report.runs.grouping import Family, families_of
from qat.report.runs.labels import quant_name
from qat.report.runs.other_data import other_data
from qat.report.runs.runs import Run
from qat.spec.sweep import TunedBy
from qat.storage.atomic import write_whole
from qat.storage.csv_table import write_csv

_METHOD = (
    "Runs that differ by their seed only are one row. ± is the sample standard deviation over the "
    "seeds; the 95 % interval is where their mean would lie if there were many more (Student's t). "
    "Differences are taken seed by seed to the reference row; p is that of the two-sided paired t "
    "test, corrected for all rows of a table (Holm). Below 0.05 the reading says higher or lower, "
    "otherwise within noise, which is no proof that two networks are equal. The intervals are not "
    "corrected, so one may leave out 0 where the reading says within noise. The test part was read "
    "once, at the end of each run."
)


_TUNED_BY = {"mean": "mean over the seeds", "worst": "of the worst seed"}


def write_report(
    runs: Sequence[Run],
    out: Path,
    *,
    title: str = "Training runs",
    reference: str | None = None,
    tuned_key: str | None = None,
    tuned_by: TunedBy = "mean",
    state: State = "last",
    claims: Sequence[str] = (),
    literature: bool = False,
) -> Path:
    """Write index.html, pictures/ and the tables as CSV; returns the path of the page.

    Args:
        runs: any, finished or not.
        out: folder, made if missing; files in it are replaced.
        title: of the page.
        reference: label of the group that others are compared with; None for the float one.
        tuned_key: groups that differ by it only become one, see `grouping.tuned`.
        tuned_by: what is best of them, see there.
        state: which epoch the first tables judge.
        claims: texts `BETTER > WORSE` about groups of the only family.
        literature: whether what others published is drawn beside ours.

    Raises:
        SpecError: no group has the label `reference`, a claim is about none, or no config has the
            tuned key.
    """
    families = families_of(runs, tuned_key=tuned_key, tuned_by=tuned_by)
    _check_reference(families, reference)
    if claims and len(families) != 1:
        raise SpecError(f"claims are about one data set and network; here are {len(families)}")
    pictures = Pictures(out / "pictures")
    sections = [
        Section(
            family.title,
            family_section(
                family,
                pictures,
                reference=reference,
                tuned_key=tuned_key,
                state=state,
                claims=claims,
                others=_beside(family) if literature else (),
            ),
        )
        for family in families
    ]
    problems = [run for run in runs if not run.is_finished]
    if problems:
        sections.append(Section("Runs that did not finish", [problem_table(problems)]))
    sections.append(Section("How the numbers are made", [Paragraph(_METHOD)]))
    _write_tables(out, runs, families, reference=reference, tuned_key=tuned_key)
    path = out / "index.html"
    text = page(title, _lead(runs, families, tuned_key, tuned_by), sections)
    write_whole(path, text)
    return path


def _beside(family: Family) -> list[Point]:
    return points_beside(family, compare(family.groups), "bytes")


def _check_reference(families: Sequence[Family], reference: str | None) -> None:
    labels = [group.label for family in families for group in family.groups]
    if reference is not None and reference not in labels:
        known = "; ".join(dict.fromkeys(labels)) or "none, as no run has finished"
        raise SpecError(f"reference={reference} is no network of the report; there are: {known}")


def _lead(
    runs: Sequence[Run], families: Sequence[Family], tuned_key: str | None, tuned_by: TunedBy
) -> list[Block]:
    states = Counter(run.state for run in runs)
    counts = ", ".join(f"{count} {state}" for state, count in states.most_common())
    groups = sum(len(family.groups) for family in families)
    lead: list[Block] = [Paragraph(f"{len(runs)} runs ({counts}), {groups} networks to compare.")]
    missing = len(runs) - sum(run.is_finished for run in runs)
    if missing:
        words = (
            f"{missing} of {len(runs)} runs did not finish; they are listed at the end with their "
            "reasons and enter no number."
        )
        lead.append(Paragraph(words, "warning"))
    others = filter(None, map(other_data, families))
    lead += [Paragraph(words, "warning") for words in others]
    if tuned_key:
        words = (
            f"Of each network the {tuned_key} with the highest validation accuracy "
            f"({_TUNED_BY[tuned_by]}) at the last epoch is shown, among the values with the most "
            "finished seeds; the tables of "
            f"costs tell the value and out of how many{_tried(families)}. A value with a seed that "
            "failed, or with fewer seeds than its rivals, does not count as tried."
        )
        lead.append(Paragraph(words))
    return lead


def _tried(families: Sequence[Family]) -> str:
    counts = [group.tried for family in families for group in family.groups]
    return f" ({least_to_most(counts)})" if counts else ""


def _write_tables(
    out: Path,
    runs: Sequence[Run],
    families: Sequence[Family],
    *,
    reference: str | None,
    tuned_key: str | None,
) -> None:
    rows = [
        row
        for family in families
        for row in csv_rows(family, reference=reference, tuned_key=tuned_key)
    ]
    write_csv(out / "comparison.csv", rows)
    write_csv(out / "runs.csv", [_run_row(run) for run in runs])


def _run_row(run: Run) -> dict[str, Any]:
    numbers = {
        f"{state}_{part}_acc": run.number(state, f"{part}_acc")
        for state in ("last", "selected")
        for part in ("val", "test")
    }
    return {
        "run": run.name,
        "folder": str(run.folder),
        "network": quant_name(run) if run.config else None,
        "seed": run.config.get("seed"),
        "state": run.state,
        "error": run.error,
        **numbers,
    }
