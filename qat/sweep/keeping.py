"""Which checkpoints of its jobs a sweep keeps, once they are done."""

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from qat.errors import CheckpointError, QatError
from qat.folder_lock import only_process
from qat.lit.checkpoint_file import checkpoints_by_step, selected
from qat.sweep.job import Job
from qat.sweep_spec import Keep, SweepSpec


def thin(jobs: Iterable[Job], spec: SweepSpec) -> None:
    """Delete the checkpoints that `spec.keep` does not want of the jobs that are done.

    A job that another process is in waits for the next call; tables and pages stay.

    Args:
        jobs: of the sweep, in whatever state.
        spec: the sweep's options.
    """
    if spec.keep == "all":
        return
    for job in jobs:
        if job.action(spec) == "skip":
            with suppress(QatError), only_process(job.folder):
                thin_run(job.folder / "checkpoints", spec.keep)


def thin_run(checkpoints: Path, keep: Keep) -> None:
    """Delete what is not to be kept of RUN/checkpoints; what qat did not write stays.

    Args:
        checkpoints: of a run that is done.
        keep: all; selected, which leaves what `selected` finds, and everything where that is
            damaged, as another file may be the last that can be read; none.
    """
    files = [*checkpoints_by_step(checkpoints / "best").values()]
    files += [*checkpoints_by_step(checkpoints / "last").values()]
    files += [path for path in [checkpoints / "warm_start.ckpt"] if path.exists()]
    kept = None
    if keep == "all" or (keep == "selected" and len(files) < 2):
        return
    if keep == "selected":
        try:
            kept = selected(checkpoints)
        except CheckpointError:
            return
        if kept is None:
            return
    for path in files:
        if path != kept:
            path.unlink(missing_ok=True)
