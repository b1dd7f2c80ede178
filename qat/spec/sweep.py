"""Sweep options, typed; standard library only."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from qat.errors import SpecError
from qat.spec.schema import check, option

Method = Literal["grid", "random", "tpe", "tuned"]
TunedBy = Literal["mean", "worst"]
Keep = Literal["all", "selected", "none"]
_RANGE_KEYS = {"low", "high", "log", "step"}


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepSpec:
    """The config group `sweep`.

    Attributes:
        method: grid takes every combination; random and tpe (Optuna) draw `trials` of them; tuned
            chooses the values of `tune` for each other combination, on validation.
        name: of the sweep's folder; null takes the sweep file's name, else the experiment's, else a
            hash of the command.
        folder: where sweeps are kept.
        parameters: key -> list of values, or {low, high, log, step} for random and tpe.
        trials: number of jobs that random and tpe draw.
        seed: of those draws.
        prune: whether tpe stops jobs whose validation score is below the median of the earlier
            jobs' at the same epoch.
        prune_after: quantized epochs that every job gets.
        tune: keys whose values are chosen.
        tune_seeds: seeds of the runs that choose them.
        tune_by: validation score that chooses: the mean over these seeds, or that of the worst.
        parallel: jobs at the same time.
        threads: CPU threads of each job; null divides the cores among them.
        retry: whether jobs that failed are run again, from their last checkpoint.
        keep: checkpoints of jobs that are done: all; selected, of each finished job the one of the
            selected epoch, or of the last where none is selected; none, neither of pruned jobs.
        any_code: whether jobs count that were begun with other code.
        list: print the jobs and their states, and stop.
    """

    method: Method = "grid"
    name: str | None = None
    folder: str = "sweeps"
    parameters: Mapping[str, Any] = field(default_factory=dict)
    trials: int = option(20, low=1)
    seed: int = option(1, low=0)
    prune: bool = True
    prune_after: int = option(2, low=1)
    tune: tuple[str, ...] = ("optimizer.lr",)
    tune_seeds: tuple[int, ...] = option((1, 2), low=0)
    tune_by: TunedBy = "mean"
    parallel: int = option(1, low=1, high=1024)
    threads: int | None = option(None, low=1)
    retry: bool = False
    keep: Keep = "all"
    any_code: bool = False
    list: bool = False

    def __post_init__(self) -> None:
        check(self, "sweep")
        if self.name is not None and not re.fullmatch(r"\w[\w.+ -]*", self.name):
            raise SpecError(
                f"sweep.name must be a folder's name of letters, digits, '_', '-', '+' and '.'; "
                f"got {self.name!r}"
            )
        if not self.tune or not self.tune_seeds:
            empty = "tune_seeds" if self.tune else "tune"
            raise SpecError(f"sweep.{empty} must hold a value at least; got []")
        for key, values in self.parameters.items():
            _check_parameter(key, values, self.method)


def _check_parameter(key: str, values: object, method: Method) -> None:
    path = f"sweep.parameters.{key}"
    if isinstance(values, (list, tuple)):
        if not values:
            raise SpecError(f"{path} must hold a value at least; got []")
        return
    if not isinstance(values, Mapping) or not {"low", "high"} <= set(values) <= _RANGE_KEYS:
        raise SpecError(
            f"{path} must be a list of values, or low, high and perhaps log and step; "
            f"got {values!r}"
        )
    if method in ("grid", "tuned"):
        raise SpecError(f"{path} is a range; sweep.method={method} needs a list of values")
    low, high = values["low"], values["high"]
    are_numbers = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in (low, high))
    step = values.get("step")
    if step is not None and (values.get("log") or not isinstance(step, (int, float)) or step <= 0):
        raise SpecError(f"{path}: step must be > 0, and stand without log; got {values!r}")
    if not are_numbers or not low < high or (values.get("log") and low <= 0):
        raise SpecError(f"{path} must have low < high, low > 0 where log is true; got {values!r}")
