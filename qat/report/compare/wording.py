"""Number formats, as a reader of a table wants them."""

from collections.abc import Collection
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a duration costs no scipy
    from qat.report.compare.statistics import Interval, Summary

NOTHING = "–"  # noqa: RUF001 -- a dash, for what was not measured
_UNITS = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


def duration(seconds: float) -> str:
    """Seconds as people say them.

    >>> duration(42), duration(150), duration(9000)
    ('42 s', '2.5 min', '2.5 h')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def points(difference: float) -> str:
    """A difference of fractions in percentage points, with its sign."""
    return f"{100 * difference:+.2f}".replace("-", "\N{MINUS SIGN}")


def spread(summary: "Summary | None", *, scale: float = 100.0) -> str:
    """Mean and sample standard deviation; one value stands alone."""
    if summary is None:
        return NOTHING
    sd = "" if summary.sd is None else f" ± {scale * summary.sd:.2f}"
    return f"{scale * summary.mean:.2f}{sd}"


def between(interval: "Interval | None") -> str:
    """An interval of differences in percentage points."""
    return NOTHING if interval is None else " to ".join(points(end) for end in interval)


def inside(interval: "Interval | None") -> str:
    """An interval of accuracies: none if all runs are equal, no end beyond what is possible."""
    if interval is None:
        return NOTHING
    low, high = (f"{100 * min(max(end, 0.0), 1.0):.2f}" for end in interval)
    return NOTHING if low == high else f"{low} to {high}"


def probability(p: float) -> str:
    """A p value with three decimals."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def grouped(value: float | None) -> str:
    """A whole number with commas."""
    return NOTHING if value is None else f"{value:,.0f}"


def with_unit(value: float | None) -> str:
    """Three digits with k, M or G."""
    if value is None:
        return NOTHING
    for size, unit in _UNITS:
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g}"


def least_to_most(counts: Collection[int]) -> str:
    """Whole numbers by their range.

    >>> least_to_most([3, 5, 4]), least_to_most([2, 2])
    ('3 to 5', '2')
    """
    low, high = min(counts), max(counts)
    return str(low) if low == high else f"{low} to {high}"


def text(value: object) -> str:
    """Any value, a dash for none."""
    return NOTHING if value is None or value == "" else str(value)
