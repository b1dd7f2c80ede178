"""A search: trials are asked for, run and told, as many at a time as there is room."""

from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qat.compose import composed, conf_folder
from qat.extras import require_optuna
from qat.status import mark, read_status
from qat.sweep.job import Job, jobs_of
from qat.sweep.pool import Pool
from qat.sweep.progress import Progress, validation_scores
from qat.sweep.study import Study
from qat.sweep_spec import SweepSpec

if TYPE_CHECKING:
    import optuna

_LOOK = 1.0  # seconds between two looks at the running jobs


def check_search(overrides: Sequence[str]) -> None:
    """Check what can be known before the first trial is drawn.

    Raises:
        SpecError: the config that all trials share is wrong, or Optuna is not installed.
    """
    require_optuna()
    composed(conf_folder(), overrides)


def search(overrides: Sequence[str], spec: SweepSpec, folder: Path) -> list[Job]:
    """Run the trials of a study that are not finished; returns the jobs of all of this call.

    Raises:
        QatError: the stored study searches other parameters.
    """
    return _Search(list(overrides), spec, folder).run()


class _Search:
    def __init__(self, overrides: list[str], spec: SweepSpec, folder: Path) -> None:
        self._overrides, self._spec, self._folder = overrides, spec, folder
        self._study = Study(folder, spec)
        self._trials: dict[Job, list[optuna.trial.Trial]] = {}
        self._pruned: dict[Job, str] = {}

    def run(self) -> list[Job]:
        study, spec = self._study, self._spec
        unfinished = deque(study.unfinished())
        print(f"sweep {self._folder}: {study.asked} of {spec.trials} trials begun before, ", end="")
        print(f"{len(unfinished)} of them to be continued", flush=True)
        progress = Progress(max(spec.trials - study.asked, 0) + len(unfinished))
        with Pool(spec.parallel, self._folder.name) as pool:
            while True:
                while pool.has_room and (unfinished or study.asked < spec.trials):
                    self._begin(unfinished.popleft() if unfinished else study.ask(), pool)
                if not pool.running:
                    return list(self._trials)
                progress.show(list(self._trials), pool.running)
                self._prune(pool)
                for job in pool.ended(timeout=_LOOK):
                    self._end(job)
                    progress.ended(job)

    def _begin(self, trial: "optuna.trial.Trial", pool: Pool) -> None:
        own = self._study.overrides(trial)
        run = composed(conf_folder(), [*self._overrides, *own])
        (job,) = jobs_of([run], self._folder, any_code=self._spec.any_code, names=[",".join(own)])
        twin = next((known for known in pool.running if known.folder == job.folder), None)
        if twin is not None:  # two trials of the same values are one run
            self._trials[twin].append(trial)
            return
        self._trials[job] = [trial]
        if job.action(retry=True) == "skip":
            self._tell(job)
        else:
            pool.start(job)

    def _prune(self, pool: Pool) -> None:
        for job in pool.running:
            if job in self._pruned:
                continue
            warm = job.run.spec.warm_start.epochs
            scores = {e - warm: v for e, v in validation_scores(job.folder).items() if e > warm}
            behind = self._study.prunes(self._trials[job][0], scores)
            if behind is not None:
                self._pruned[job] = f"pruned: {scores[behind]:.4f} after {behind} quantized epochs"
                pool.stop(job)

    def _end(self, job: Job) -> None:
        if job in self._pruned and job.state != "finished":
            mark(job.folder, "pruned", self._pruned[job])
        if job.state in ("finished", "pruned", "failed"):
            self._tell(job)  # an interrupted trial stays open, for the next call

    def _tell(self, job: Job) -> None:
        metrics = read_status(job.folder).get("metrics") or {}
        state = metrics.get("selected") or metrics.get("last") or {}
        score = state.get("val_acc", state.get("val_agreement"))
        for trial in self._trials[job]:
            self._study.tell(trial, score, pruned=job.state == "pruned")
