"""Checkpoint thinning: which checkpoints of its jobs a sweep keeps, once they are done."""

from collections.abc import Iterable
from pathlib import Path

from qat.errors import QatError, one_line, shown
from qat.spec.sweep import Keep, SweepSpec
from qat.storage.checkpoint import (
    checkpoints_by_step,
    last_good,
)
from qat.storage.lock import only_process
from qat.sweep.job import Job


def thin(jobs: Iterable[Job], spec: SweepSpec) -> None:
    """Delete the checkpoints that `spec.keep` does not want of the jobs that are done.

    What cannot be deleted, or is in use, is told and waits for the next call. Tables and pages
    stay, and so does every file that qat did not write.

    Args:
        jobs: of the sweep, in whatever state.
        spec: the sweep's options.
    """
    for job in jobs:
        if not _is_done(job, spec):
            continue
        try:
            with only_process(job.folder):
                if _is_done(job, spec):  # still, now that no other process is in it
                    for path in superfluous(job, spec.keep):
                        path.unlink(missing_ok=True)
        except (QatError, OSError) as error:
            print(
                f"sweep.keep: {shown(job.folder)} keeps its checkpoints: {one_line(error)}",
                flush=True,
            )


def superfluous(job: Job, keep: Keep) -> list[Path]:
    """The checkpoints of a job that is done, without the one that `keep` wants.

    Args:
        job: that is done.
        keep: selected wants the checkpoint of the selected epoch, or of the last one if the run
            has selected none; where that is missing, the others are all there is, and stay.

    Raises:
        CheckpointError: the one that is wanted is damaged.
    """
    checkpoints = job.folder / "checkpoints"
    warm_start = checkpoints / "warm_start.ckpt"
    files = [warm_start] if warm_start.exists() else []
    for part in ("best", "last"):
        files += checkpoints_by_step(checkpoints / part).values()
    if keep == "none":
        return files
    if keep == "all" or len(files) < 2:  # one that stays need not be read
        return []
    kept = last_good(checkpoints / ("best" if job.scores("selected") else "last"))
    return [path for path in files if path != kept] if kept else []


def _is_done(job: Job, spec: SweepSpec) -> bool:
    """Whether nobody will go on with it; a pruned job may, from its checkpoints."""
    match spec.keep:
        case "all":
            return False
        case "selected":
            return job.state == "finished"
        case "none":
            return job.action(spec) == "skip"
