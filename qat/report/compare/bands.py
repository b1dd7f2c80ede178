"""Mean curves: several runs as one, mean and spread at every place that all of them have."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from qat.report.compare.statistics import deviation, mean
from qat.report.runs.runs import finite

Axis = Literal["epoch", "step"]
# rows of a table in which each place of the axis stands once
Series = dict[int, float]
Table = Sequence[Mapping[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """Mean and spread over runs.

    Attributes:
        places: epochs or steps, rising.
        means: at each place.
        spreads: sample standard deviations at each place, 0 for a single run.
        n: number of runs.
    """

    places: tuple[int, ...]
    means: tuple[float, ...]
    spreads: tuple[float, ...]
    n: int


def band_of(tables: Sequence[Table], column: str, *, axis: Axis = "epoch") -> Band | None:
    """The band of one column of metrics.csv; None if no run has it.

    Args:
        tables: rows of metrics.csv of each run of a group.
        column: e.g. val/acc.
        axis: epochs count from 1, steps are as logged.
    """
    return band([series(rows, column, axis=axis) for rows in tables])


def series(rows: Table, column: str, *, axis: Axis = "epoch") -> Series:
    """Values of a column by epoch (from 1) or step; of equal places the last one stays."""
    found: Series = {}
    for row in rows:
        place, value = finite(row.get(axis, "")), finite(row.get(column, ""))
        if place is not None and value is not None:
            found[int(place) + (axis == "epoch")] = value
    return dict(sorted(found.items()))


def band(curves: Sequence[Series]) -> Band | None:
    """Mean and spread where all curves have a value; a mean over changing runs would jump.

    Args:
        curves: place -> value; empty ones are left out.
    """
    curves = [curve for curve in curves if curve]
    if not curves:
        return None
    places = sorted(set.intersection(*(set(curve) for curve in curves)))
    columns = [[curve[place] for curve in curves] for place in places]
    return Band(
        places=tuple(places),
        means=tuple(mean(column) for column in columns),
        spreads=tuple(deviation(column) or 0.0 for column in columns),
        n=len(curves),
    )
