"""Start of a run: in this process, or in several of this machine, as torchrun starts them."""

import logging
import os
import signal
import sys
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qat.errors import QatError, SpecError
from qat.spec.overrides import quoted
from qat.spec.run import RunSpec
from qat.storage.status import mark

# seconds that processes may take to save after a signal
SAVING = 120


def start_run(
    config: Mapping[str, Any], spec: RunSpec, folder: Path, *, given: Sequence[str] | None = None
) -> int:
    """Train a run in the processes that it asks for; returns the exit code.

    Args:
        config: resolved, plain values.
        spec: the same, checked.
        folder: run folder, with its config recorded in it.
        given: overrides by which it is resumed; None goes on as it is recorded.

    Raises:
        QatError: as `qat.train.run.run_job`, or a process was killed.
    """
    from qat.lit.processes import device_type
    from qat.ranks import group as ranks
    from qat.train.run import run_job

    accelerator = spec.trainer.get("accelerator", "auto")
    count = processes(spec.trainer.get("devices", 1), accelerator)
    if count > 1 and ranks.size() == 1 and device_type(accelerator) == "cuda":
        _check_gpus(count)
    if count == 1 or ranks.size() > 1 or spec.audit_only:
        run_job(config, spec, folder)
        return 0
    try:
        return run_processes(given or _resuming(folder, config), count)
    except QatError as error:
        mark(folder, "interrupted", str(error))
        raise QatError(f"{error}; resume={folder} goes on") from None


def _check_gpus(count: int) -> None:
    import torch

    if count > torch.cuda.device_count():
        raise SpecError(
            f"trainer.devices={count}, and PyTorch sees {torch.cuda.device_count()} GPUs; use at "
            "most as many, or trainer.accelerator=cpu"
        )


def _resuming(folder: Path, config: Mapping[str, Any]) -> list[str]:
    """The command that goes on with a run that has just been recorded."""
    allow = ",".join(map(quoted, config.get("allow_targets") or ()))
    return [f"resume={quoted(str(folder))}", *([f"allow_targets=[{allow}]"] if allow else [])]


def run_processes(arguments: Sequence[str], count: int) -> int:
    """Run the command of training in several processes of this machine; returns the exit code.

    A signal to this process is passed on. Where one process fails or is killed, the others are
    stopped.

    Args:
        arguments: of the command.
        count: of processes.

    Raises:
        QatError: a process was killed, and could not say so itself.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # DDP has advice that does not apply
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // count)))
    # modules of the user's own are found where this process finds them
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
        shutdown_timeout=SAVING,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "qat.commands.train", *arguments)
    except SignalException as stop:
        return 128 + int(stop.sigval)
    except ChildFailedError as failed:
        rank, failure = failed.get_first_failure()
        if failure.exitcode < 0:
            name = signal.Signals(-failure.exitcode).name
            raise QatError(f"process {rank} of {count} was killed by {name}") from None
        return int(failure.exitcode)
    return 0


def usable_cores() -> int:
    """Cores that this process may use."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return usable or 1


def processes(devices: object, accelerator: str) -> int:
    """Processes that trainer.devices asks for on this machine.

    Args:
        devices: a number, or auto: the GPUs that PyTorch sees, else one process.
        accelerator: trainer.accelerator.
    """
    if devices != "auto":
        return devices if isinstance(devices, int) else 1
    import torch

    return max(1, torch.cuda.device_count()) if accelerator != "cpu" else 1
