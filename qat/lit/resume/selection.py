"""Checkpoint selection: which epoch is the selected one, and which checkpoints stay."""

import math
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal, TypedDict

from qat.storage.checkpoint import (
    checkpoint_name,
    checkpoints_by_step,
)


class Best(TypedDict):
    """The selected epoch: its score, its step and its relative path."""

    score: float
    step: int
    path: str


class Selection:
    """Keeps the best epoch seen so far.

    Only selectable epochs count. One replaces the kept one if its score is strictly better: ties
    keep the earlier epoch, NaN never wins.

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
        if not selectable or not self._is_better(score):
            return False
        path = f"best/{checkpoint_name(step)}"
        self.best = Best(score=score, step=step, path=path)
        return True

    def _is_better(self, score: float) -> bool:
        if math.isnan(score):
            return False
        return self.best is None or self._sign * score > self._sign * self.best["score"]

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
