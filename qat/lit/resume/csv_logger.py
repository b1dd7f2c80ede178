"""CSV logger, append-only: the same bytes whether or not the run was resumed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from typing_extensions import override

from qat.storage.csv_table import GrowingCsv


class RunCsvLogger(Logger):
    """Writes one row per log call to `folder/metrics.csv`, flushed at once.

    Columns are `step`, `epoch`, then the metrics in order of their first appearance. Nothing that
    depends on the clock is written. `RunCheckpoint` stores `position()` in every checkpoint and
    rewinds to it on resume, so that the rows of steps that will be taken again are dropped.

    Args:
        folder: The run folder; made on the first write.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        self._folder = Path(folder)
        self._table = GrowingCsv(self._folder / "metrics.csv", ["step", "epoch"])

    @property
    @override
    def name(self) -> str:
        """Empty: the run folder is the name."""
        return ""

    @property
    @override
    def version(self) -> str:
        """Empty: a run folder holds one run."""
        return ""

    @property
    @override
    def save_dir(self) -> str:
        """The run folder."""
        return str(self._folder)

    @override
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Store nothing: the run folder holds the config already."""

    @override
    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append one row.

        Args:
            metrics: Values by name; `epoch` among them where Lightning knows it.
            step: Optimizer steps before the one that the row belongs to.

        Raises:
            QatError: The file cannot be written.
        """
        self._table.append([{"step": step, **metrics}])

    def position(self) -> dict[str, Any]:
        """Place in the file; see `GrowingCsv.position`."""
        return self._table.position()

    @rank_zero_only
    def rewind(self, position: Mapping[str, Any] | None = None) -> None:
        """Go back to a place in the file; see `GrowingCsv.rewind`."""
        self._table.rewind(position)
