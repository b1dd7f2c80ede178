"""Sweep job: what one run of a sweep is, where it lies, and what is to be done with it."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from qat.compose import Composed
from qat.spec.check import config_hash
from qat.spec.sweep import SweepSpec
from qat.storage.provenance import code_version
from qat.storage.status import is_finished, mark, read_status, state_of

Action = Literal["start", "continue", "retry", "skip", "leave"]

_LABEL_LENGTH = 80  # of a folder's name, which also holds the hashes


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """A run of a sweep.

    Attributes:
        label: the overrides that tell it from the sweep's other runs.
        run: overrides, config and options.
        folder: its run folder.
        hash: of its config.
    """

    label: str
    run: Composed
    folder: Path
    hash: str

    @property
    def state(self) -> str | None:
        """What its status.json says, None if it was never started.

        A run that says it is finished without its numbers, or of another config, is not.
        """
        state = state_of(self.folder)
        if state == "finished" and not is_finished(self.folder, self.hash):
            return "interrupted"
        return state

    def scores(self, *states: str) -> Mapping[str, Any]:
        """What status.json holds of the first of these states of the network that there is."""
        metrics = read_status(self.folder).get("metrics") or {}
        return next((metrics[state] for state in states if metrics.get(state)), {})

    def action(self, spec: SweepSpec) -> Action:
        """What a sweep of these options does with it.

        A failed job is left alone unless asked; one that a search pruned is done for searches only.
        """
        match self.state:
            case None:
                return "start"
            case "finished":
                return "skip"
            case "pruned" if spec.method == "tpe":
                return "skip"
            case "failed":
                return "retry" if spec.retry else "leave"
            case _:
                return "continue"


def mark_abandoned(jobs: Sequence[Job], why: str) -> None:
    """Mark as interrupted what says that it runs, and does not."""
    for job in jobs:
        if job.state in ("running", "waiting"):
            mark(job.folder, "interrupted", why)


def jobs_of(
    runs: Sequence[Composed],
    sweep: Path,
    *,
    any_code: bool = False,
    names: Sequence[str] | None = None,
) -> list[Job]:
    """The jobs of a sweep, each in its folder; equal runs are one job.

    A job is known by the hash of its config and that of the code, which end its folder's name. The
    label before them may change when the command grows.

    Args:
        runs: composed.
        sweep: the sweep's folder.
        any_code: whether a folder that was begun with other code is taken.
        names: labels; None finds them.
    """
    here = sorted(path for path in sweep.glob("*-*-*") if path.is_dir())
    jobs: dict[str, Job] = {}
    names = names or labels([run.overrides for run in runs])
    for run, label in zip(runs, names, strict=True):
        config = config_hash(run.config)
        own = f"-{config}-{code_version().sources}"
        known = [p for p in here if p.name.endswith(own)]
        if any_code and not known:
            known = [p for p in here if p.name.rpartition("-")[0].endswith(f"-{config}")]
        # of several with other code the finished one
        known.sort(key=lambda path: state_of(path) != "finished")
        folder = known[0] if known else sweep / (_file_name(label) + own)
        jobs.setdefault(config, Job(label, run, folder, config))
    return list(jobs.values())


def labels(runs: Sequence[Sequence[str]]) -> list[str]:
    """Of each list of overrides those that are not in all of them, as one text.

    >>> labels([["seed=1", "quant=float", "model=vgg11"], ["seed=2", "quant=float", "model=vgg11"]])
    ['seed=1', 'seed=2']
    """
    common = set(runs[0]).intersection(*runs[1:]) if len(runs) > 1 else set()
    return [",".join(o for o in run if o not in common) or "run" for run in runs]


def _file_name(label: str) -> str:
    """A label as a name that can be typed into an override: without commas and equals signs."""
    return re.sub(r"[^\w.+-]+", "_", label.replace(",", "+"))[:_LABEL_LENGTH].strip("_-") or "run"
