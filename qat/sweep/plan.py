"""Sweep plan: the jobs that a sweep's command asks for."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from qat.compose import combinations, composed, conf_folder
from qat.errors import shown
from qat.launch.start import usable_cores
from qat.spec.sweep import SweepSpec
from qat.storage.provenance import code_version
from qat.sweep.draw import drawn, listed
from qat.sweep.job import Action, Job, jobs_of

_LONG = 24  # jobs
_TOLD: dict[Action, str] = {
    "skip": "finished, skipped",
    "continue": "interrupted, to be continued",
    "retry": "failed, to be run again",
    "leave": "failed, left alone (sweep.retry=true runs them again)",
    "start": "new",
}


def planned(overrides: Sequence[str], spec: SweepSpec, folder: Path) -> list[Job]:
    """Every job of a grid or of random draws.

    Args:
        overrides: of the command, with lists.
        spec: the sweep's options, `without_given` of these overrides.
        folder: the sweep's.

    Raises:
        SpecError: a job's config is wrong.
    """
    draws = drawn(spec) if spec.method == "random" else [listed(spec.parameters)]
    asked = [combinations([*draw, *overrides]) for draw in draws]
    runs = [composed(conf_folder(), run) for runs in asked for run in runs]
    return jobs_of(runs, folder, any_code=spec.any_code)


def without_given(spec: SweepSpec, overrides: Sequence[str]) -> SweepSpec:
    """The options without the parameters that a command gives itself: the command wins."""
    given = {o.lstrip("+").partition("=")[0] for o in overrides}
    own = {key: values for key, values in spec.parameters.items() if key not in given}
    return replace(spec, parameters=own)


def shared_overrides(overrides: Sequence[str], spec: SweepSpec) -> list[str]:
    """The overrides of every job: the command's, and its threads.

    The number of threads moves the last bits of every sum, so it is part of what a run is.
    """
    if spec.threads is None and any(o.startswith("training.threads=") for o in overrides):
        return list(overrides)
    threads = spec.threads or max(1, usable_cores() // (spec.parallel * _processes(overrides)))
    return [*overrides, f"training.threads={threads}"]


def _processes(overrides: Sequence[str]) -> int:
    """Processes of each job, as far as the command says it for all of them."""
    asked = [o.partition("=")[2] for o in overrides if o.startswith("trainer.devices=")]
    return int(asked[-1]) if asked and asked[-1].isdecimal() else 1


def plan_lines(jobs: Sequence[Job], spec: SweepSpec, folder: Path) -> list[str]:
    """What will become of each job, with the hashes that decide it."""
    code = code_version()
    actions = Counter(job.action(spec) for job in jobs)
    # of a long sweep what is done already needs no line each, unless the list was asked for
    is_long = len(jobs) > _LONG and not spec.list
    told = [job for job in jobs if not is_long or job.action(spec) != "skip"]
    number = f"{len(jobs)} job{'s' * (len(jobs) != 1)}"
    return [
        f"sweep {shown(folder)}: {number}, code {code.sources} (commit {code.commit})",
        *(f"  {actions[action]} {words}" for action, words in _TOLD.items() if actions[action]),
        *(f"  {job.hash}  {job.action(spec):8}  {shown(job.label)}" for job in told),
    ]
