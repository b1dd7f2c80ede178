"""Provenance of a comparison: code, machine, threads and versions of its runs."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from qat.errors import DataError, SpecError
from qat.report.runs.grouping import Group
from qat.report.runs.labels import shown
from qat.report.runs.runs import Run
from qat.storage.provenance import machine


def origins_of(groups: Sequence[Group], commit: str | None = None) -> list[dict[str, Any]]:
    """Each origin once, with the labels of the groups that come from it.

    What runs of earlier versions do not hold is told by whoever asks, and marked so: the commit by
    `commit`, the machine by the one at hand.

    Args:
        groups: of finished runs.
        commit: of the code, for runs that do not hold it.

    Raises:
        DataError: the runs of a group have several origins, or do not tell their code.
        SpecError: `commit` is none.
    """
    if commit is not None and not re.fullmatch(r"[0-9a-f]{7,40}", commit):
        raise SpecError(f"commit must be a git commit of 7 to 40 hex digits; got {commit!r}")
    found: dict[str, list[str]] = {}
    for group in groups:
        own = {json.dumps(_origin(run, commit), sort_keys=True) for run in group.finished}
        if len(own) > 1:
            raise DataError(
                f"the runs of {group.label!r} come from different code, machines or threads; give "
                f"folders of one origin: {' and '.join(sorted(own))[:600]}"
            )
        found.setdefault(own.pop(), []).append(group.label)
    return [{**json.loads(text), "rows": labels} for text, labels in found.items()]


def _origin(run: Run, commit: str | None) -> dict[str, Any]:
    code = run.value("code")
    if not isinstance(code, Mapping):
        if commit is None:
            raise DataError(f"{run.name} does not hold the version of its code; give commit=HASH")
        code = {"commit": commit, "recorded": False}
    place = run.value("machine")
    if not isinstance(place, Mapping):
        place = {**machine(), "recorded": False}
    names = ("threads", "versions")
    return {"code": dict(code), "machine": dict(place), **{key: run.value(key) for key in names}}


# keys of summary.json -> what differs, in words
_SOURCES = {
    ("code", "sources"): "versions of the code",
    ("threads",): "thread counts",
    ("versions", "torch"): "versions of torch",
}


_UNKNOWN = "unknown"


_MOST_NAMED = 8


def warnings_of(groups: Sequence[Group]) -> list[str]:
    """Sentences on what the numbers of a family mix; none if they mix nothing.

    Args:
        groups: of one family; the rivals of a tuned one are part of the comparison.
    """
    runs = [run for group in groups for own in (group, *group.rivals) for run in own.finished]
    found = []
    for keys, words in _SOURCES.items():
        values = (run.value(*keys) for run in runs)
        counts = Counter(_UNKNOWN if value is None else shown(value) for value in values)
        if len(counts) > 1:
            named = _listed([f"{value} ({count} runs)" for value, count in counts.most_common()])
            found.append(
                f"The runs were made with {len(counts)} {words}: {named}. A difference between "
                "networks may be a difference between these."
            )
    repeated = [
        f"{group.label or own.key} seed {seed}"
        for group in groups
        for own in (group, *group.rivals)
        for seed in _repeated(own)
    ]
    if repeated:
        found.append(
            f"Several finished runs have the same config and seed: {_listed(repeated)}. Of each "
            "the run whose summary.json was written last counts, the others enter no number."
        )
    return found


def _repeated(group: Group) -> list[int]:
    counts = Counter(run.seed for run in group.runs if run.is_finished)
    return sorted(seed for seed, count in counts.items() if count > 1)


def _listed(words: Sequence[str]) -> str:
    more = f" and {len(words) - _MOST_NAMED} more" if len(words) > _MOST_NAMED else ""
    return ", ".join(words[:_MOST_NAMED]) + more
