"""Hydra launchers for sweeps, such as SLURM's: each job knows whether it has to run.

Experimental: only the launcher of this machine is tested, none of a cluster.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from qat.compose import Composed, record
from qat.errors import QatError, SpecError, shown
from qat.spec.check import check_config, config_hash
from qat.spec.sweep import SweepSpec
from qat.sweep.draw import listed
from qat.sweep.job import Job, mark_abandoned
from qat.sweep.plan import plan_lines, planned, without_given
from qat.sweep.progress import closing_lines
from qat.sweep.thinning import thin
from qat.train.wandb_group import group_run

# (config, overrides): the work of one job
SweepWork = Callable[[Mapping[str, Any], Sequence[str]], None]
# (overrides with lists, sweep's folder, work)
Launch = Callable[[list[str], Path, SweepWork], None]


def run_launched(overrides: Sequence[str], spec: SweepSpec, folder: Path, launch: Launch) -> bool:
    """Run a grid through Hydra's launcher; returns whether all of its jobs are finished.

    The number of threads is the launcher's matter unless sweep.threads gives it.

    Args:
        overrides: of the command, with lists, and hydra/launcher=NAME.
        spec: the sweep's options.
        folder: of the sweep.
        launch: hands the runs to the launcher.

    Raises:
        SpecError: the sweep is no grid, or a job's config is wrong.
    """
    if spec.method != "grid":
        raise SpecError(
            f"sweep.method={spec.method} does not go with hydra/launcher=; leave the launcher out "
            "for processes of this machine, or use sweep.method=grid"
        )
    threads = [] if spec.threads is None else [f"training.threads={spec.threads}"]
    spec = without_given(spec, overrides)
    own = [o for o in overrides if not o.startswith("hydra")]
    jobs = planned([*own, *threads], spec, folder.absolute())
    print("\n".join(plan_lines(jobs, spec, folder)), flush=True)
    if spec.list:
        return True

    folders = {job.hash: job.folder for job in jobs}

    def work(config: Mapping[str, Any], overrides: Sequence[str]) -> None:
        _work(config, overrides, folders[config_hash(config)], spec)

    try:
        launch([*listed(spec.parameters), *overrides, *threads], folder.absolute(), work)
    except Exception as error:  # a launcher gives up at its first lost job; ours are all told below
        reason = shown(str(error).partition("\n")[0])
        print(f"launcher: {type(error).__name__}: {reason}")
    finally:
        mark_abandoned(jobs, "killed, or out of reach of its launcher")
        print("\n".join(["", *closing_lines(jobs, folder)]), flush=True)
    return all(job.state == "finished" for job in jobs)


def _work(
    config: Mapping[str, Any], overrides: Sequence[str], folder: Path, spec: SweepSpec
) -> None:
    """One job on whatever machine it was sent to: begun, continued or left as it is."""
    from qat.launch.start import start_run

    run = Composed(tuple(overrides), dict(config), check_config(config))
    job = Job("", run, folder, config_hash(config))
    action = job.action(spec)
    if action in ("skip", "leave"):
        print(f"{shown(job.folder)}: {job.state}")
    else:
        group_run(run.overrides, folder.parent.name)
        record(job.folder, run.overrides, run.config)
        code = start_run(run.config, run.spec, job.folder)
        if code:
            raise QatError(f"{job.folder}: its processes ended with code {code}")
    thin([job], spec)
