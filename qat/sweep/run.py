"""Sweep execution: what is finished is skipped, what was interrupted goes on, the rest is begun."""

import signal
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from qat.compose import composed, conf_folder
from qat.spec.sweep import SweepSpec
from qat.storage.lock import only_process
from qat.storage.writable import check_writable
from qat.sweep.job import Job, jobs_of, mark_abandoned
from qat.sweep.plan import plan_lines, planned, shared_overrides, without_given
from qat.sweep.pool import Pool
from qat.sweep.progress import Progress, closing_lines
from qat.sweep.rehearsal import rehearse
from qat.sweep.search import check_search, drawn_jobs, search
from qat.sweep.thinning import thin
from qat.sweep.tuned import Trial, chosen_jobs, runs_of, trials_of

# what was interrupted goes first, so that little lies half done
_ORDER = ("continue", "retry", "start")


def run_sweep(overrides: Sequence[str], spec: SweepSpec, folder: Path) -> bool:
    """Run every job of a sweep that is not finished yet; prints the plan, the progress, the end.

    Args:
        overrides: as on the command line, with lists of choices, without flags and sweep options.
        spec: the sweep's options; keys that the command gives are not taken from its parameters.
        folder: the sweep's; its jobs lie in it.

    Returns:
        Whether every job is finished or, in a search, pruned.

    Raises:
        SpecError: a job's config is wrong, or this machine cannot run it; none is begun then.
        QatError: another process runs this sweep, or the sources change while it runs.
    """
    shared = shared_overrides(overrides, spec)
    spec = without_given(spec, shared)
    # what can be known is checked before anything is made
    trials = trials_of(shared, spec) if spec.method == "tuned" else []
    jobs = _known(shared, spec, folder, trials)
    if spec.list:
        print("\n".join(plan_lines(jobs, spec, folder)))
        return True
    check_writable(folder, "hydra.sweep.dir")
    begun = [job.run for job in jobs if job.action(spec) in _ORDER]
    rehearse(begun if jobs else [composed(conf_folder(), shared)])  # a search draws as it goes
    folder.mkdir(parents=True, exist_ok=True)

    with only_process(folder), _stopped_by_sigterm():
        try:
            if spec.method == "tpe":
                search(shared, spec, folder, jobs)
            else:
                _run_all(jobs, spec, folder)
            if spec.method == "tuned" and (chosen := chosen_jobs(trials, jobs, shared, spec)):
                known = {job.hash for job in jobs}
                jobs += [job for job in chosen if job.hash not in known]
                _run_all(chosen, spec, folder)
        finally:  # however it ends, all that is not finished is told
            mark_abandoned(jobs, "killed")
            print("\n".join(["", *closing_lines(jobs, folder)]), flush=True)
    return all(job.action(spec) == "skip" for job in jobs)


def _known(
    overrides: Sequence[str], spec: SweepSpec, folder: Path, trials: Sequence[Trial]
) -> list[Job]:
    """The jobs that are known before the first one ends.

    Raises:
        SpecError: a config is wrong, or Optuna is not installed.
    """
    match spec.method:
        case "tpe":
            check_search(overrides)
            return drawn_jobs(overrides, spec, folder)
        case "tuned":
            return jobs_of(runs_of(trials), folder, any_code=spec.any_code)
        case _:
            return planned(overrides, spec, folder)


def _run_all(jobs: Sequence[Job], spec: SweepSpec, folder: Path) -> None:
    print("\n".join(plan_lines(jobs, spec, folder)), flush=True)
    actions = {job: job.action(spec) for job in jobs}
    waiting = deque(job for action in _ORDER for job in jobs if actions[job] == action)
    progress = Progress(len(jobs))
    thin(jobs, spec)  # done by an earlier call
    with Pool(spec.parallel, folder.name) as pool:
        while waiting or pool.running:
            while waiting and pool.has_room:
                pool.start(waiting.popleft())
            progress.show(jobs, pool.running)
            for job in pool.ended():
                progress.ended(job)
                thin([job], spec)


@contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """A block that SIGTERM ends in good order, with 143: its jobs save and stop."""

    def stop(signum: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + signum)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
