"""One run from options to summary: build, train, test once, audit."""

import logging
import platform
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import Logger
from torch import Tensor, nn

from qat.audit import Audit, audit
from qat.errors import SpecError
from qat.lit.callbacks import EpochLines, KeepWarmStart
from qat.lit.checkpoint import SafeCheckpointIO
from qat.lit.checkpoint_file import last_good, load
from qat.lit.classifier import LitClassifier
from qat.lit.csv_logger import RunCsvLogger
from qat.lit.data.dataset import images_of
from qat.lit.data.images_only import ImagesOnly
from qat.lit.data.module import ImageData
from qat.lit.data.registry import build_data
from qat.lit.distillation import distiller
from qat.lit.distiller import LitDistiller
from qat.lit.quantized import OptimizerFactory
from qat.lit.reliability import FiniteGuard, StatelessRandomness
from qat.lit.restore import read_weights, restore
from qat.lit.run_checkpoint import RunCheckpoint
from qat.lit.signals import Signals
from qat.plan import weight_projections
from qat.run_spec import RunSpec
from qat.surgery import enable_quantizers, prepare

_log = logging.getLogger(__name__)
_PACKAGES = ("torch", "torchvision", "lightning", "torchmetrics", "hydra-core", "timm", "qat")
_QUIET = (
    ".*does not have many workers.*",
    ".*number of training batches.*is smaller than the logging interval.*",
    ".*isinstance.treespec, LeafSpec.*",
    ".*`lr_scheduler.step..` before `optimizer.step..`.*",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What a config names by `_target_`, already resolved.

    Attributes:
        model: (num_classes, in_channels, image_size) -> float network.
        optimizer: partial of a torch optimizer.
        callbacks: further Lightning callbacks.
        loggers: loggers beside metrics.csv.
        teacher: (data of the student) -> (network of the teacher, its origin); None without one.
    """

    model: Callable[..., nn.Module]
    optimizer: OptimizerFactory
    callbacks: Sequence[L.Callback] = field(default=())
    loggers: Sequence[Logger] = field(default=())
    teacher: Callable[[ImageData], tuple[nn.Module, str]] | None = None


@dataclass(frozen=True, slots=True)
class Built:
    """Data, prepared network and Lightning module of a run, on the way to training."""

    data: ImageData
    net: nn.Module
    lit: LitClassifier
    example: Tensor


def build(spec: RunSpec, parts: Parts) -> Built:
    """Data, network and module; the same weights for the same seed.

    Raises:
        QatError: data are missing, the model cannot be built, or `init_from` does not fit.
    """
    # an earlier network of this process (a teacher, a job of a sweep) counts as a recompilation
    torch.compiler.reset()
    if spec.training.threads is not None:
        torch.set_num_threads(spec.training.threads)
    data = build_data(spec.data, seed=spec.seed)
    if not spec.uses_labels:
        data = ImagesOnly(data, spec.unlabelled)
    data.prepare()
    teacher = parts.teacher(data) if parts.teacher is not None else None
    L.seed_everything(spec.seed, verbose=False)
    shape = {"num_classes": data.num_classes, "in_channels": data.channels}
    net = parts.model(**shape, image_size=data.image_size)
    example = images_of(data.sample_batch())[:2]
    prepare(net, spec.quant, example=example)
    measures_steps = True
    if spec.init_from is not None:
        started = restore(net, spec.quant, read_weights(spec.init_from, net), weights="latent")
        measures_steps = bool(started)
        if started:
            _log.info(
                "init_from: float weights; %d entries of quantizers keep their start", len(started)
            )
    options: dict[str, Any] = {
        "optimizer": parts.optimizer,
        "scheduler": spec.scheduler,
        "training": spec.training,
        "classes": data.num_classes,
        "warm_start_epochs": spec.warm_start.epochs,
        "class_weights": data.class_weights(),
        "measures_steps": measures_steps,
    }
    if spec.distill is None or teacher is None:
        return Built(data, net, LitClassifier(net, spec.quant, **options), example)
    lit = distiller(net, spec, *teacher, example=example, **options)
    return Built(data, net, lit, example)


def audit_untrained(built: Built, spec: RunSpec) -> Audit:
    """The audit of the network as it is now, weights projected."""
    with torch.no_grad():
        for parameter, projection in weight_projections(built.net, spec.quant).items():
            parameter.copy_(projection(parameter))
    return audit(built.net, spec.quant, built.example)


def train(
    built: Built, spec: RunSpec, parts: Parts, folder: Path, *, signals: Signals
) -> tuple[dict[str, Any], Audit]:
    """Fit, test once, audit; returns the content of summary.json and the audit.

    Continues from the newest good checkpoint of `folder` if there is one.

    Raises:
        QatError: the loss or a gradient is not finite, a checkpoint cannot be written, or the
            audit finds a value off the grid.
    """
    _quieten_lightning()
    checkpoints = folder / "checkpoints"
    keeper = RunCheckpoint(
        checkpoints,
        every_n_steps=spec.training.checkpoint_every,
        monitor=built.lit.monitor,
        selectable=lambda _, module: module.is_selectable,  # type: ignore[arg-type, return-value]
    )
    trainer = _trainer(spec, parts, folder, [keeper, signals])
    begin = last_good(checkpoints / "last")
    if spec.resume is not None:
        print(f"resume: {begin}" if begin else "resume: no checkpoint was saved; from step 0")
    start = time.monotonic()
    trainer.fit(built.lit, datamodule=built.data, ckpt_path=begin, weights_only=True)
    seconds = time.monotonic() - start
    summary, found = _summary(built, spec, trainer, keeper, checkpoints)
    return summary | {"fit_seconds": seconds}, found


def _trainer(spec: RunSpec, parts: Parts, folder: Path, first: Sequence[L.Callback]) -> L.Trainer:
    callbacks = [
        *first,
        StatelessRandomness(spec.seed),
        KeepWarmStart(folder / "checkpoints"),
        FiniteGuard(),
        *parts.callbacks,
    ]
    if not spec.trainer.get("enable_progress_bar", True):
        callbacks.append(EpochLines())
    try:
        return L.Trainer(
            **spec.trainer,
            callbacks=callbacks,
            logger=[RunCsvLogger(folder), *parts.loggers],
            plugins=[SafeCheckpointIO()],
            enable_checkpointing=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            default_root_dir=folder,
        )
    except (ValueError, TypeError, MisconfigurationException) as error:
        raise SpecError(f"trainer: {str(error).splitlines()[0]}") from error


def _quieten_lightning() -> None:
    """Hide advice that does not apply; what matters here is printed by the run itself."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in _QUIET:
        warnings.filterwarnings("ignore", message=message)


def _summary(
    built: Built, spec: RunSpec, trainer: L.Trainer, keeper: RunCheckpoint, checkpoints: Path
) -> tuple[dict[str, Any], Audit]:
    last = last_good(checkpoints / "last")
    assert last is not None  # on_train_end has saved it
    states = {"last": last}
    if keeper.best_path is not None:
        states["selected"] = keeper.best_path
    if (checkpoints / "warm_start.ckpt").exists():
        states["warm_start"] = checkpoints / "warm_start.ckpt"
    results = {name: _evaluate(name, path, built, spec) for name, path in states.items()}
    # the audit speaks of the network that a user would take home
    restore(built.net, spec.quant, load(states.get("selected", last)))
    enable_quantizers(built.net, True)
    if isinstance(built.lit, LitDistiller):
        results["teacher"] = _teacher(built.lit, results)
    found = audit(built.net.cpu(), spec.quant, built.example)
    totals = {k: v for k, v in found.to_dict().items() if k not in ("layers", "other")}
    summary = {
        **results,
        **totals,
        "rule": _rule(spec, trainer.global_step - built.lit.warm_steps),
        "steps": trainer.global_step,
        "epochs": trainer.current_epoch,
        "seed": spec.seed,
        "threads": torch.get_num_threads(),
        "device": _device(trainer),
        "versions": versions(),
        "audit": found.to_dict()["layers"],
        "classes": list(built.data.classes),
    }
    return summary, found


def _teacher(lit: LitDistiller, results: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """What is recorded of the teacher; its accuracy moves out of the results of the student."""
    accuracies = [result.pop("test_acc_teacher") for result in results.values()]
    return {
        "origin": lit.teacher.origin,
        "sha256": lit.teacher.sha256,
        "test_acc": accuracies[0],
        "layers": {"student": list(lit.layers), "teacher": list(lit.teacher.layers)},
    }


def recorded_teacher(folder: Path) -> str | None:
    """The checkpoint of the teacher that an interrupted run began with, None before its first."""
    newest = last_good(folder / "checkpoints" / "last")
    if newest is None:
        return None
    origin: str | None = load(newest)["qat"].get("teacher", {}).get("origin")
    return origin if origin is not None and Path(origin).is_file() else None


def _evaluate(name: str, path: Path, built: Built, spec: RunSpec) -> dict[str, Any]:
    """What validation and test say of one saved state: hard weights, or the float warm start."""
    checkpoint = load(path)
    is_float = name == "warm_start"
    restore(built.net, spec.quant, checkpoint, weights="latent" if is_float else "hard")
    enable_quantizers(built.net, not is_float)
    built.lit.quant_optimizer = None  # the weights to judge are in the network itself
    built.lit.is_quantized = not is_float
    judge = L.Trainer(
        accelerator=spec.trainer.get("accelerator", "auto"),
        devices=1,
        precision=spec.trainer.get("precision", "32-true"),
        limit_val_batches=spec.trainer.get("limit_val_batches", 1.0),
        limit_test_batches=spec.trainer.get("limit_test_batches", 1.0),
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    numbers: Mapping[str, float] = {
        **judge.validate(built.lit, datamodule=built.data, verbose=False)[0],
        **judge.test(built.lit, datamodule=built.data, verbose=False)[0],
    }
    keys = ("epoch", "global_step")
    place: dict[str, Any] = {key: checkpoint[key] for key in keys if key in checkpoint}
    confusion = None if is_float else built.lit.confusion
    return {
        **place,
        **{key.replace("/", "_"): value for key, value in numbers.items()},
        **({} if confusion is None else {"confusion": confusion}),
    }


def _rule(spec: RunSpec, steps: int) -> dict[str, Any]:
    """The rule's own numbers, and what they amounted to over `steps` quantized steps."""
    rule = spec.quant.rule
    own = {"bcgd": ("rho",), "binary_relax": ("initial", "final", "hard_from")}
    return {
        "name": rule.name,
        "method": spec.quant.weight.method,
        "numbers": {key: getattr(rule, key) for key in own.get(rule.name, ())},
        "quantized_steps": steps,
        "relaxed_steps": round(rule.hard_from * steps) if rule.name == "binary_relax" else 0,
        # share of the distance to the forward weights that blending alone covers
        "pull": 1 - (1 - rule.rho) ** steps if rule.name == "bcgd" else 0.0,
    }


def versions() -> dict[str, str]:
    """Version of Python and of each installed package that may change a number."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):  # a checkout on the path is not installed
            found[package] = version(package)
    return found


def _device(trainer: L.Trainer) -> str:
    device = trainer.strategy.root_device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
