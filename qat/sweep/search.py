"""Hyper-parameter search: trials are asked for, run and told, as many at a time as fit."""

from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qat.compose import composed, conf_folder
from qat.errors import shown
from qat.spec.check import config_hash
from qat.spec.extras import require_optuna
from qat.spec.sweep import SweepSpec
from qat.storage.provenance import code_version
from qat.storage.status import mark, validation_score
from qat.sweep.job import Job, jobs_of
from qat.sweep.pool import LEAVING, Pool
from qat.sweep.progress import Progress, validation_scores
from qat.sweep.study import Study
from qat.sweep.thinning import thin

if TYPE_CHECKING:
    import optuna


def check_search(overrides: Sequence[str]) -> None:
    """Check what can be known before the first trial is drawn.

    Raises:
        SpecError: the config that all trials share is wrong, or Optuna is not installed.
    """
    require_optuna()
    composed(conf_folder(), overrides)


def search(overrides: Sequence[str], spec: SweepSpec, folder: Path, jobs: list[Job]) -> None:
    """Run the trials of a study that are not finished.

    Args:
        overrides: of every trial.
        spec: the sweep's options.
        folder: the sweep's.
        jobs: `drawn_jobs`; the job of each further trial is added as it begins.
    """
    _Search(list(overrides), spec, folder).run(jobs)


def drawn_jobs(overrides: Sequence[str], spec: SweepSpec, folder: Path) -> list[Job]:
    """The jobs of the trials that were drawn before; a search draws the others as it goes."""
    if not (folder / "optuna.db").is_file():
        return []
    return _Search(list(overrides), spec, folder).drawn()


def _study_name(overrides: Sequence[str], spec: SweepSpec) -> str:
    """What a search is: the config that its trials share, what is searched, and the code."""
    shared = config_hash(composed(conf_folder(), overrides).config)
    searched = config_hash({key: _plain(values) for key, values in spec.parameters.items()})
    return "-".join([shared, searched, *([] if spec.any_code else [code_version().sources])])


def _plain(values: Any) -> Any:
    return dict(values) if isinstance(values, Mapping) else list(values)


class _Search:
    def __init__(self, overrides: list[str], spec: SweepSpec, folder: Path) -> None:
        self._overrides, self._spec, self._folder = overrides, spec, folder
        self._study = Study(folder, spec, _study_name(overrides, spec))
        self._trials: dict[Job, list[optuna.trial.Trial]] = {}
        self._pruned: dict[Job, str] = {}
        self._failed: deque[optuna.trial.FrozenTrial] = deque()

    def drawn(self) -> list[Job]:
        """The jobs of the trials whose values are drawn, one of each folder."""
        found = [self._job(own) for own in self._study.drawn()]
        return list({job.folder: job for job in found}.values())

    def run(self, jobs: list[Job]) -> None:
        """Run all trials that have not come to an end; adds their jobs to those of the others."""
        study, spec = self._study, self._spec
        thin(jobs, spec)  # done by an earlier call
        unfinished = deque(study.unfinished())
        self._failed = deque(study.failed() if spec.retry else ())
        print(
            f"sweep {shown(self._folder)}: {study.asked} of {spec.trials} trials begun before, ",
            end="",
        )
        print(f"{len(unfinished)} of them to be continued", flush=True)
        again = len(unfinished) + len(self._failed)
        progress = Progress(max(spec.trials - study.asked, 0) + again)
        with Pool(spec.parallel, self._folder.name) as pool:
            while True:
                while pool.has_room and (trial := self._next(unfinished)) is not None:
                    self._begin(trial, jobs, pool)
                if not pool.running:
                    return
                progress.show(list(self._trials), pool.running)
                self._prune(pool)
                for job in pool.ended():
                    self._end(job)
                    progress.ended(job)
                    thin([job], spec)

    def _next(self, unfinished: "deque[optuna.trial.Trial]") -> "optuna.trial.Trial | None":
        """What was interrupted, then what failed, then new draws; None if all is begun."""
        if unfinished:
            return unfinished.popleft()
        if self._failed:
            return self._study.ask_again(self._failed.popleft())
        return self._study.ask() if self._study.asked < self._spec.trials else None

    def _job(self, own: Sequence[str]) -> Job:
        run = composed(conf_folder(), [*self._overrides, *own])
        names = [",".join(own)]
        return jobs_of([run], self._folder, any_code=self._spec.any_code, names=names)[0]

    def _begin(self, trial: "optuna.trial.Trial", jobs: list[Job], pool: Pool) -> None:
        job = self._job(self._study.overrides(trial))
        if all(job.folder != known.folder for known in jobs):
            jobs.append(job)
        twin = next((known for known in pool.running if known.folder == job.folder), None)
        if twin is not None:  # two trials of the same values are one run
            self._trials[twin].append(trial)
            return
        self._trials[job] = [trial]
        if job.action(self._spec) in ("skip", "leave"):  # by another trial, or not told before
            self._tell(job)
            thin([job], self._spec)
        else:
            pool.start(job)

    def _prune(self, pool: Pool) -> None:
        for job in pool.running:
            if job in self._pruned:
                continue
            behind = self._study.prunes(self._trials[job][0], _quantized_scores(job))
            if behind is not None:
                epoch, score = behind
                self._pruned[job] = f"pruned: {score:.4f} after {epoch} quantized epochs"
                pool.stop(job)

    def _end(self, job: Job) -> None:
        if job in self._pruned and job.state != "finished":
            mark(job.folder, "pruned", self._pruned[job], wait=LEAVING)
        if job.state in ("finished", "pruned", "failed"):
            self._tell(job)  # an interrupted trial stays open, for the next call

    def _tell(self, job: Job) -> None:
        score = validation_score(job.scores("selected", "last"))
        for trial in self._trials[job]:
            if job.state == "finished":  # later trials are compared with all of its epochs
                self._study.report(trial, _quantized_scores(job))
            self._study.tell(trial, score, pruned=job.state == "pruned")


def _quantized_scores(job: Job) -> dict[int, float]:
    """Quantized epoch, from 1 -> validation score."""
    warm = job.run.spec.warm_start.epochs
    return {e - warm: v for e, v in validation_scores(job.folder).items() if e > warm}
