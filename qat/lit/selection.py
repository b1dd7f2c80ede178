"""Which epoch of a run is the selected one, and which checkpoints stay."""

import math
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal, TypedDict

from qat.lit.checkpoint_file import checkpoint_name, checkpoints_by_step


class Best(TypedDict):
    """The selected epoch: its score, whether it was selectable, its step and relative path."""

    score: float
    selectable: bool
    step: int
    path: str


class Selection:
    """Keeps the best epoch seen so far.

    An epoch replaces the kept one if it is the first selectable one or, both being equally
    selectable, if its score is strictly better: ties keep the earlier epoch, NaN never wins. While
    nothing is selectable yet, the best of what there is stands in.

    Args:
        mode: Whether a larger or a smaller score is better.
    """

    def __init__(self, mode: Literal["max", "min"] = "max") -> None:
        self._sign = 1 if mode == "max" else -1
        self.best: Best | None = None

    def offer(self, score: float, *, step: int, selectable: bool = True) -> bool:
        """Look at one more validated epoch.

        Args:
            score: Value of the monitored metric.
            step: Optimizer steps done when it was measured.
            selectable: Whether these weights may be the run's result.

        Returns:
            Whether it is the selected one now.
        """
        if not self._is_better(score, selectable):
            return False
        path = f"best/{checkpoint_name(step)}"
        self.best = Best(score=score, selectable=selectable, step=step, path=path)
        return True

    def _is_better(self, score: float, selectable: bool) -> bool:
        if math.isnan(score):
            return False
        if self.best is None:
            return True
        if selectable != self.best["selectable"]:
            return selectable
        return self._sign * score > self._sign * self.best["score"]

    def state_dict(self) -> dict[str, Any] | None:
        """The record as plain values, None before the first epoch."""
        return dict(self.best) if self.best else None

    def load_state_dict(self, state: Any) -> None:
        """Continue from a saved record."""
        self.best = state


def keep_only(folder: Path, steps: Collection[int]) -> None:
    """Delete the checkpoints of a folder that were taken at other steps than these."""
    for step, path in checkpoints_by_step(folder).items():
        if step not in steps:
            path.unlink(missing_ok=True)
