"""Config check: everything that can be wrong with a command, before anything heavy is imported."""

import ast
import difflib
import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from qat.errors import SpecError
from qat.spec.data_files import check_data
from qat.spec.distill import PRETRAINED, DistillSpec
from qat.spec.extras import parsed_source
from qat.spec.lightning import FLAG_CHOICES, NO_MPS, TRAINER, check_callbacks, check_flags
from qat.spec.model import check_model
from qat.spec.numbers import without_added
from qat.spec.run import RunSpec
from qat.spec.targets import check_targets, with_first_names, with_names_of_now
from qat.spec.unlabelled import check_unlabelled

_NUMBERS: dict[str, tuple[float, float]] = {
    "lr": (0.0, 1e6),
    "momentum": (0.0, 1.0),
    "weight_decay": (0.0, 1e6),
    "eps": (0.0, 1.0),
    "dampening": (0.0, 1.0),
}
_SHARDING = ("fsdp", "deepspeed", "model_parallel")
_COUNTS = ("accumulate_grad_batches", "check_val_every_n_epoch", "log_every_n_steps", "num_nodes")
_SHARES = {
    "limit_train_batches": 1.0,
    "limit_val_batches": 1.0,
    "limit_test_batches": 1.0,
    "gradient_clip_val": 1e9,
}


def check_config(config: Mapping[str, Any]) -> RunSpec:
    """Check a composed config as far as is possible without torch.

    Args:
        config: plain values, the key `allow_targets` included.

    Returns:
        The typed run.

    Raises:
        SpecError: naming the key, the value and what is allowed.
        DataError: the data set is not where the config says.
    """
    values = dict(config)
    spec = typed(values, values.pop("allow_targets", ()))
    check_callbacks(values, has_quantizers=spec.quant.has_quantizers)
    _check_optimizer(spec.optimizer)
    _check_trainer(spec.trainer)
    _check_sync(spec)
    _check_paths(spec)
    _check_distill(spec.distill)
    check_data(spec.data)
    if spec.unlabelled is not None:
        check_unlabelled(spec.unlabelled)
    return spec


def typed(values: Mapping[str, Any], allow_targets: Sequence[str] = ()) -> RunSpec:
    """The typed run of a config whose `_target_`s may be called.

    Args:
        values: plain values, without the key `allow_targets`.
        allow_targets: prefixes of the user's own, from the command and never from a file.

    Raises:
        SpecError: naming the key, the value and what is allowed.
    """
    is_list = isinstance(allow_targets, (list, tuple))
    if not is_list or not all(isinstance(prefix, str) and prefix for prefix in allow_targets):
        raise SpecError(
            f"allow_targets must be a list of prefixes, [mypackage.]; got {allow_targets!r:.80}"
        )
    values = with_names_of_now(values)
    spec = RunSpec.from_dict(values)
    check_targets(values, allow_targets)
    check_model(spec.model)
    if spec.distill is not None and spec.distill.teacher_model is not None:
        check_model(spec.distill.teacher_model)
    return spec


def config_hash(config: Mapping[str, Any]) -> str:
    """Hash of a run's config: everything but where it is resumed from.

    The same for every version: moved names count by their first ones, and options that came later
    only where they are not at their defaults.

    Args:
        config: resolved, plain values.

    Returns:
        16 hex digits.
    """
    kept = {k: v for k, v in config.items() if k not in ("resume", "resume_allow")}
    relevant = with_first_names(without_added(kept))
    return hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()[:16]


def _check_optimizer(optimizer: Mapping[str, Any]) -> None:
    target = str(optimizer.get("_target_", ""))
    if not target or "lr" not in optimizer:
        raise SpecError("optimizer needs _target_ and lr, as optimizer=sgd has them")
    if target.startswith("torch.optim."):
        _check_torch_optimizer(target.removeprefix("torch.optim."), optimizer)
    for key, (low, high) in _NUMBERS.items():
        if key in optimizer:
            _check_number(f"optimizer.{key}", optimizer[key], low, high, open_low=key == "lr")
    betas = optimizer.get("betas", ())
    for index, beta in enumerate(betas if isinstance(betas, (list, tuple)) else [betas]):
        _check_number(f"optimizer.betas[{index}]", beta, 0.0, 1.0)


def _check_torch_optimizer(name: str, optimizer: Mapping[str, Any]) -> None:
    known = _arguments("torch", f"optim/{name.lower()}.py", name)
    if known is None:
        raise SpecError(f"optimizer._target_=torch.optim.{name} is no optimizer of torch, e.g. SGD")
    if name == "LBFGS":
        raise SpecError("optimizer._target_=torch.optim.LBFGS calls its closure; use sgd or adamw")
    _check_known("optimizer", optimizer, known)


def _check_trainer(trainer: Mapping[str, Any]) -> None:
    check_flags(trainer)
    known = _arguments("lightning", "pytorch/trainer/trainer.py", "Trainer")
    if known is not None:
        _check_known("trainer", trainer, known - {k for k, (why, _) in TRAINER.items() if why})
    _check_devices(trainer)
    for key, choices in FLAG_CHOICES.items():
        if trainer.get(key) not in (None, *choices):
            names = ", ".join(choices)
            raise SpecError(f"trainer.{key} must be one of {names}; got {trainer[key]!r}")
    for key in _COUNTS:
        value = trainer.get(key, 1)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise SpecError(f"trainer.{key} must be an integer >= 1; got {value!r}")
    for key, high in _SHARES.items():
        value = trainer.get(key)
        is_count = key.startswith("limit") and isinstance(value, int) and value > 1
        if value is not None and not is_count:
            _check_number(f"trainer.{key}", value, 0.0, high, open_low=True)


def _check_devices(trainer: Mapping[str, Any]) -> None:
    if trainer.get("accelerator") == "mps":
        raise SpecError(f"trainer.accelerator=mps: {NO_MPS}; use trainer.accelerator=cpu")
    if str(strategy := trainer.get("strategy")).startswith(_SHARDING):
        raise SpecError(
            f"trainer.strategy={strategy} shards weights, and a scale needs whole tensors; use "
            "trainer.strategy=ddp"
        )
    devices = trainer.get("devices", 1)
    if devices in ("1", [0]):  # as earlier runs recorded it
        return
    is_count = isinstance(devices, int) and not isinstance(devices, bool) and devices >= 1
    if not is_count and devices != "auto":
        raise SpecError(
            f"trainer.devices must be a number of processes, or auto for one on each GPU; got "
            f"{devices!r}"
        )


def _check_sync(spec: RunSpec) -> None:
    is_shared = (spec.trainer.get("devices", 1), spec.trainer.get("num_nodes", 1)) != (1, 1)
    if is_shared and spec.trainer.get("sync_batchnorm") and spec.training.compile:
        raise SpecError(
            "trainer.sync_batchnorm=true with training.compile=true: the processes cannot meet "
            "inside of a compiled network; leave one out"
        )


def _check_paths(spec: RunSpec) -> None:
    for key in ("init_from", "resume"):
        path = getattr(spec, key)
        if path is not None and not Path(path).exists():
            raise SpecError(f"{key}={path} does not exist; give a run folder")


def _check_distill(distill: DistillSpec | None) -> None:
    if distill is None:
        return
    path = distill.teacher
    if path is not None and not distill.is_pretrained_name and not Path(path).exists():
        names = " or ".join(f"{prefix}NAME" for prefix in PRETRAINED)
        raise SpecError(
            f"distill.teacher={path} does not exist; give a run folder, a checkpoint, {names}, or "
            "null to train one"
        )


def _check_known(group: str, given: Mapping[str, Any], known: set[str]) -> None:
    for key in given:
        if key not in known and not key.startswith("_"):
            close = difflib.get_close_matches(key, known, n=1)
            mean = f"; did you mean {group}.{close[0]}?" if close else ""
            raise SpecError(
                f"{group}.{key} is not an option{mean} (options: {', '.join(sorted(known))})"
            )


def _check_number(
    key: str, value: object, low: float, high: float, *, open_low: bool = False
) -> None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    inside = is_number and (low < value if open_low else low <= value) and value <= high  # type: ignore[operator]
    if not inside:
        sign = ">" if open_low else ">="
        raise SpecError(f"{key} must be a number {sign} {low:g} and <= {high:g}; got {value!r}")


@cache
def _arguments(package: str, file: str, name: str) -> set[str] | None:
    """Argument names of a class in an installed package, read from its source: no import."""
    source = parsed_source(package, file)
    for node in ast.walk(source) if source else ():
        if isinstance(node, ast.ClassDef) and node.name == name:
            return _init_arguments(node)
    return None


def _init_arguments(node: ast.ClassDef) -> set[str]:
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and item.name == "__init__":
            arguments = [*item.args.args, *item.args.kwonlyargs]
            return {a.arg for a in arguments} - {"self", "params"}
    return set()
