"""Progress lines: what a sweep says while it runs, and at its end."""

import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from qat.errors import one_line, shown
from qat.report.compare.wording import duration
from qat.storage.csv_table import read_rows
from qat.storage.status import read_status
from qat.sweep.job import Job

_STATES = ("finished", "pruned", "failed", "interrupted")


class Progress:
    """One line for the whole sweep, rewritten in place on a terminal, else one for each end.

    Args:
        total: number of jobs.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self._is_terminal = sys.stdout.isatty()
        self._start = time.monotonic()
        self._ended = 0

    def ended(self, job: Job) -> None:
        """A job has ended."""
        self._ended += 1
        self._clear()
        status = read_status(job.folder)
        text = one_line(status["error"]) if status.get("error") else _score(job)
        print(f"{status.get('state', 'interrupted'):11} {shown(job.label)}  {text}", flush=True)

    def show(self, jobs: Sequence[Job], running: Sequence[Job]) -> None:
        """Rewrite the line, on a terminal."""
        if self._is_terminal:
            self._clear()
            print(shown(self.line(jobs, running))[:160], end="", flush=True)

    def line(self, jobs: Sequence[Job], running: Sequence[Job]) -> str:
        """How many jobs are in which state, where the running ones are, and the time to go."""
        states = [job.state for job in jobs if job not in running]
        counts = {state: states.count(state) for state in _STATES}
        told = [f"{counts['finished']} of {self.total} finished"]
        told += [f"{count} {state}" for state, count in counts.items() if count][1:]
        now = [f"{job.label} ({_epochs(job)})" for job in running]
        left = self.total - sum(counts.values())
        return " | ".join([", ".join(told), *now, *self._to_go(left)])

    def _to_go(self, jobs: int) -> list[str]:
        if not self._ended or not jobs:
            return []
        seconds = (time.monotonic() - self._start) / self._ended * jobs
        return [f"about {duration(seconds)} to go"]

    def _clear(self) -> None:
        if self._is_terminal:
            print("\r\x1b[K", end="")


def closing_lines(jobs: Sequence[Job], folder: Path) -> list[str]:
    """The table of a sweep's jobs, and below it every job that did not finish, with its error."""
    labels = [shown(job.label) for job in jobs]
    width = max(map(len, labels), default=0)
    lines = [
        f"{label:{width}}  {job.state or 'not started':11}  {_score(job)}"
        for label, job in zip(labels, jobs, strict=True)
    ]
    missing = [job for job in jobs if job.state not in ("finished", "pruned")]
    if missing:
        lines += ["", f"not finished ({len(missing)} of {len(jobs)}):"]
        for job in missing:
            error = read_status(job.folder).get("error") or _without_error(job)
            lines.append(f"  {shown(job.label)}: {one_line(error)}")
            lines.append(f"    {shown(job.folder)}")
    place = shown(folder)
    return [*lines, "", f"sweep folder: {place}; compare by python scripts/report.py {place}"]


def _without_error(job: Job) -> str:
    if job.state in ("running", "waiting"):
        return f"{job.state}, in another process"
    return job.state or "not started"


def _score(job: Job) -> str:
    """The accuracies of a finished job."""
    state = job.scores("selected", "last")
    names = {"val_acc": "val", "val_agreement": "val agreement", "test_acc": "test"}
    return "  ".join(f"{title} {state[key]:.4f}" for key, title in names.items() if key in state)


def _epochs(job: Job) -> str:
    done, of = validation_scores(job.folder), job.run.config["trainer"]["max_epochs"]
    return f"epoch {len(done)} of {of}"


def validation_scores(folder: Path) -> dict[int, float]:
    """Epoch, from 1 -> validation score, of what metrics.csv of a run holds by now."""
    scores = {}
    for row in read_rows(folder / "metrics.csv"):
        value = row.get("val/acc") or row.get("val/agreement")
        with suppress(KeyError, ValueError):  # no score in this row, or a damaged one
            scores[int(row["epoch"]) + 1] = float(value or "")
    return scores
