"""Runs of one comparison that had other images than the rest, by what they wrote down of them."""

from collections.abc import Sequence
from contextlib import suppress

from qat.errors import CheckpointError
from qat.report.runs.grouping import Family
from qat.report.runs.runs import Run
from qat.storage.data_changes import data_changes, sentence
from qat.storage.data_record import DataRecord, read_record


def other_data(family: Family) -> str:
    """Which finished runs had other images than the first of them, and how; empty if none had.

    Runs that wrote nothing down are passed over.
    """
    runs = [run for group in family.groups for run in group.finished]
    known = [(run, record) for run in runs if (record := _record(run)) is not None]
    if not known:
        return ""
    first, base = known[0]
    others = [(run, changes) for run, now in known[1:] if (changes := data_changes(base, now))]
    if not others:
        return ""
    example, changes = others[0]
    return (
        f"{family.title}: {len(others)} of {len(known)} runs had other images than {first.name}, "
        f"so their numbers do not compare: {_names([run for run, _ in others])}. Of "
        f"{example.name}: {sentence(changes)}."
    )


def _record(run: Run) -> DataRecord | None:
    with suppress(CheckpointError):
        return read_record(run.folder)
    return None


def _names(runs: Sequence[Run]) -> str:
    return ", ".join([run.name for run in runs[:3]] + (["..."] if len(runs) > 3 else []))
