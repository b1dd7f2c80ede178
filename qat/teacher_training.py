"""The float teacher that a student's command trains first when it is given none."""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from qat.compose import conf_folder, group_option, recorded
from qat.distill_spec import DistillSpec
from qat.preflight import check_config, config_hash
from qat.run_spec import RunSpec
from qat.status import state_of

Train = Callable[[Mapping[str, Any], RunSpec, Path], float]


def teacher_config(config: Mapping[str, Any], distill: DistillSpec) -> dict[str, Any]:
    """The config of a float run on labels that trains the teacher of a student's run.

    The student's, with the teacher's model, seed, budget and learning rate, without quantization,
    distillation, warm start, loggers and callbacks.

    Args:
        config: of the student's run, resolved.
        distill: its group `distill`, checked.
    """
    training = distill.teacher_training
    own: dict[str, Any] = {
        "model": distill.teacher_model or config["model"],
        "quant": group_option(conf_folder(), "quant", "float"),
        "trainer": dict(config["trainer"]),
        "optimizer": dict(config["optimizer"]),
        "warm_start": {"epochs": 0},
        "seed": training.seed,
        "audit_only": False,
        "logger": {},
        "callbacks": {},
        "init_from": None,
        "resume": None,
        "resume_allow": [],
    }
    if training.epochs is not None:
        own["trainer"]["max_epochs"] = training.epochs
    if training.lr is not None:
        own["optimizer"]["lr"] = training.lr
    left_out = ("distill", "unlabelled")
    return {key: value for key, value in config.items() if key not in left_out} | own


def ensure_teacher(config: Mapping[str, Any], distill: DistillSpec, *, train: Train) -> Path:
    """The run folder of the teacher that belongs to a student's config; trained if it is not there.

    The folder is named by the hash of the teacher's config, so every student with the same teacher
    finds it, and an interrupted training of it is continued. It is an ordinary run folder.

    Args:
        config: of the student's run, resolved.
        distill: its group `distill`, checked.
        train: runs a config in a folder, as `qat.job.run_job`.

    Raises:
        QatError: as `train`.
    """
    wanted = teacher_config(config, distill)
    folder = Path(distill.teacher_training.folder) / config_hash(wanted)
    folder.mkdir(parents=True, exist_ok=True)
    with _only_one(folder):
        if state_of(folder) == "finished":
            print(f"teacher: {folder}, trained earlier for the same config", flush=True)
            return folder
        print(
            "distill.teacher is null: training the float teacher first, in "
            f"{folder} ({wanted['trainer']['max_epochs']} epochs); later runs use it again",
            flush=True,
        )
        recorded(conf_folder(), folder, wanted)
        spec = check_config(wanted)
        if state_of(folder) is not None:
            spec = replace(spec, resume=str(folder))
        train(wanted, spec, folder)
    print("teacher trained; now the student", flush=True)
    return folder


@contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Let one process at a time train in `folder`; the others wait and find it finished."""
    if sys.platform == "win32":  # no advisory locks there
        yield
        return
    import fcntl

    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"teacher: waiting for process that trains it in {folder}", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
