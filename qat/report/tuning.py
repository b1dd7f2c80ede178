"""A key that was tuned: that it is one, and its values by size."""

import difflib
from collections.abc import Sequence
from typing import Any

from qat.errors import SpecError
from qat.report.runs import Run, finite


def check_tuned_key(key: str, runs: Sequence[Run]) -> None:
    """Refuse a key that no run has.

    Args:
        key: dotted, e.g. optimizer.lr.
        runs: with a config each; without any there is nothing to check.

    Raises:
        SpecError: no config has the key.
    """
    known = sorted({name for run in runs for name in run.config})
    if not runs or key in known:
        return
    close = [name for name in known if name.endswith(f".{key}")]
    close = close or difflib.get_close_matches(key, known, n=1)
    mean = f"did you mean {close[0]}?" if close else "give a dotted key, e.g. optimizer.lr"
    raise SpecError(f"tuned={key} is a key of no run's config; {mean}")


def by_size(value: Any) -> tuple[bool, float, str]:
    """Sorts values: numbers by their size, before all others."""
    size = finite(value)
    return size is None, size or 0.0, str(value)
