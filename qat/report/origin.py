"""Where the runs of a comparison come from: code, machine, threads and versions."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from qat.errors import DataError, SpecError
from qat.machine import machine
from qat.report.grouping import Group
from qat.report.runs import Run


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
