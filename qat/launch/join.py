"""Joining: a process that torchrun or srun has started finds its place, and the others."""

import logging
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from qat.errors import SpecError
from qat.ranks.place import Place

_LOOK = 1.0  # seconds between two looks at whether the launcher is still there


class Meeting(NamedTuple):
    """A process's place, and where the processes meet.

    Attributes:
        place: of this process.
        method: where they meet, as `qat.ranks.group.join` takes it.
        attempt: how often they were started before.
        restarts: how often they may be started again.
    """

    place: Place
    method: str
    attempt: int = 0
    restarts: int = 0


def meeting(environment: Mapping[str, str]) -> Meeting | None:
    """What the variables of a launcher say; None for a process that stands alone.

    torchrun sets RANK, WORLD_SIZE and more for all of its workers. Of SLURM a process started by
    srun is meant: in a job script itself, and in an interactive shell, its numbers are those of an
    allocation in which nothing has been started yet.

    Args:
        environment: variables of the process.

    Raises:
        SpecError: srun started more processes on one node than on another.
    """
    if "TORCHELASTIC_RUN_ID" in environment:
        return _from_torchrun(environment)
    if int(environment.get("SLURM_STEP_NUM_TASKS", 1)) > 1 and "SLURM_PROCID" in environment:
        return _from_slurm(environment)
    return None


def _from_torchrun(environment: Mapping[str, str]) -> Meeting:
    local_size = int(environment["LOCAL_WORLD_SIZE"])
    place = Place(
        rank=int(environment["RANK"]),
        size=int(environment["WORLD_SIZE"]),
        local_rank=int(environment["LOCAL_RANK"]),
        local_size=local_size,
        node=int(environment["GROUP_RANK"]),
        nodes=int(environment["WORLD_SIZE"]) // local_size,
    )
    attempt = int(environment["TORCHELASTIC_RESTART_COUNT"])
    restarts = int(environment["TORCHELASTIC_MAX_RESTARTS"])
    return Meeting(place, "env://", attempt, restarts)


def _from_slurm(environment: Mapping[str, str]) -> Meeting:
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

    size, nodes = int(environment["SLURM_STEP_NUM_TASKS"]), int(environment["SLURM_STEP_NUM_NODES"])
    if size % nodes:
        raise SpecError(
            f"srun started {size} processes on {nodes} nodes; every node needs as many, as "
            "#SBATCH --ntasks-per-node says it"
        )
    place = Place(
        rank=int(environment["SLURM_PROCID"]),
        size=size,
        local_rank=int(environment["SLURM_LOCALID"]),
        local_size=size // nodes,
        node=int(environment["SLURM_NODEID"]),
        nodes=nodes,
    )
    names = ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST")
    nodelist = next((environment[name] for name in names if name in environment), "127.0.0.1")
    host = environment.get("MASTER_ADDR") or SLURMEnvironment.resolve_root_node_address(nodelist)
    # equal in all processes of a job, and another one for most jobs of a machine
    port = environment.get("MASTER_PORT") or 15000 + int(environment["SLURM_JOB_ID"]) % 10000
    return Meeting(place, f"tcp://{host}:{port}")


def adopted(
    found: Meeting | None, trainer: Mapping[str, Any], overrides: Sequence[str]
) -> list[str]:
    """Overrides by which a run's config tells how many processes a launcher has started.

    Args:
        found: as `meeting` says.
        trainer: of the config.
        overrides: of the command.

    Raises:
        SpecError: the command asks for other processes than there are, or for machines on which
            nothing has started any; or a restart would not find its run.
    """
    devices, nodes = trainer.get("devices", 1), trainer.get("num_nodes", 1)
    if found is None:
        if nodes > 1:
            raise SpecError(
                f"trainer.num_nodes={nodes}: on several machines processes are started by torchrun "
                "or srun, see docs/devices.md; on this one alone by trainer.devices=N"
            )
        return []
    place = found.place
    given = {o.lstrip("+").partition("=")[0] for o in overrides}
    if found.restarts and not given & {"hydra.run.dir", "resume"}:
        raise SpecError(
            "torchrun --max-restarts: a restart has to find its run again; give "
            "hydra.run.dir=FOLDER"
        )
    if devices in (place.local_size, "auto") and nodes == place.nodes:
        return []
    if given & {"trainer.devices", "trainer.num_nodes"}:
        raise SpecError(
            f"trainer.devices={devices} trainer.num_nodes={nodes}, and the launcher started "
            f"{place.local_size} processes on each of {place.nodes} machines; leave both out"
        )
    return [f"trainer.devices={place.local_size}", f"trainer.num_nodes={place.nodes}"]


def join(found: Meeting, *, accelerator: str) -> None:
    """Meet the other processes of the training; all but the first are silent from here on.

    Args:
        found: as `meeting` says.
        accelerator: trainer.accelerator.
    """
    import torch

    from qat.lit.processes import device_type
    from qat.ranks import group as ranks

    if found.place.rank:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (as long as the process)
        logging.disable(logging.WARNING)
        warnings.simplefilter("ignore")
    uses_cuda = device_type(accelerator) == "cuda"
    if uses_cuda:
        if found.place.local_size > torch.cuda.device_count():
            raise SpecError(
                f"{found.place.local_size} processes were started on a machine with "
                f"{torch.cuda.device_count()} GPUs; start one on each"
            )
        torch.cuda.set_device(found.place.local_rank)
    ranks.join(
        found.place,
        method=found.method,
        backend="nccl" if uses_cuda else "gloo",
        attempt=found.attempt,
    )
    threading.Thread(target=_leave_with, args=(os.getppid(),), daemon=True).start()


def _leave_with(launcher: int) -> None:
    """Ask this process to save and stop once its launcher is gone, however it ended."""
    while os.getppid() == launcher:
        time.sleep(_LOOK)
    os.kill(os.getpid(), signal.SIGTERM)
