"""Teacher training: the float teacher that a student's command trains first without one."""

import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from qat.compose import conf_folder, group_option, recorded
from qat.errors import QatError, shown
from qat.ranks import group as ranks
from qat.spec.check import check_config, config_hash
from qat.spec.distill import DistillSpec
from qat.spec.numbers import keys_that_move
from qat.spec.run import RunSpec
from qat.storage.lock import only_process
from qat.storage.status import is_finished, state_of

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
        # of hard weights, which the teacher has none of
        "training": {**config["training"], "bn_reestimate": 0},
        "optimizer": dict(config["optimizer"]),
        "warm_start": {"epochs": 0},
        "seed": training.seed,
        "audit_only": False,
        "ema": {"decay": None},
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


def ensure_teacher(
    config: Mapping[str, Any], spec: RunSpec, *, rehearse: Callable[[], None], train: Train
) -> Path:
    """The run folder of the teacher that belongs to a student's config; trained if it is not there.

    The folder is named by a hash of the teacher's config without what cannot change its numbers,
    so every student with the same teacher finds it, and an interrupted training of it is
    continued. It is an ordinary run folder.

    Args:
        config: of the student's run, resolved.
        spec: the same, checked; `spec.distill` is set.
        rehearse: called before a training: builds the student, and raises if it cannot be.
        train: runs a config in a folder, as `qat.train.run.run_job`.

    Raises:
        QatError: as `rehearse`, and as `train` with the teacher's folder in front.
    """
    assert spec.distill is not None  # asked only then
    wanted = teacher_config(config, spec.distill)
    folder = Path(spec.distill.teacher_training.folder) / config_hash(_identity(wanted))
    folder.mkdir(parents=True, exist_ok=True)

    def waiting() -> None:
        print(f"teacher: waiting for the process that trains it in {shown(folder)}", flush=True)

    held = only_process(folder, name="lock", wait=math.inf, waiting=waiting)
    # a lock of its own: the run inside locks its folder itself
    with held if ranks.is_first() else nullcontext():
        if ranks.from_first(is_finished(folder)):
            print(f"teacher: {shown(folder)}, trained earlier for the same config", flush=True)
            return folder
        rehearse()
        print(
            "distill.teacher is null: training the float teacher first, in "
            f"{shown(folder)} ({wanted['trainer']['max_epochs']} epochs); later runs use it again",
            flush=True,
        )
        has_begun = ranks.from_first(state_of(folder) is not None)
        if ranks.is_first():
            recorded(conf_folder(), folder, wanted)
        own = check_config(wanted)
        if has_begun:
            threads = tuple({"threads"} & set(spec.resume_allow))
            own = replace(own, resume=str(folder), resume_allow=threads)
        try:
            train(wanted, own, folder)
        except QatError as error:
            raise type(error)(f"teacher {folder}: {error}") from error
    print("teacher trained; now the student", flush=True)
    return folder


def _identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config without what changes nothing in its run, and without the way it is compiled.

    Of three groups, and data.download counts: so the hashes of teachers trained earlier stay.
    """
    free = (keys_that_move("nothing") | {"training.compile"}) - {"data.download"}
    kept = {
        group: {key: value for key, value in config[group].items() if f"{group}.{key}" not in free}
        for group in ("data", "trainer", "training")
    }
    # any number of processes takes the same steps, and finds the same teacher
    kept["trainer"] |= {"devices": 1, "num_nodes": 1, "strategy": "auto"}
    return {**config, **kept}
