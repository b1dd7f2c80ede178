"""Assembly of a run from its options: data, prepared network, Lightning module."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import Logger
from torch import Tensor, nn

from qat.data.dataset import images_of
from qat.data.module import ImageData
from qat.data.registry import build_data
from qat.lit.classifier import LitClassifier
from qat.lit.pairing import distiller
from qat.lit.quantized import OptimizerFactory
from qat.quantize.audit import Audit, audit
from qat.quantize.plan import Plan, project_weights, resolve
from qat.quantize.prepare import prepare
from qat.spec.run import RunSpec
from qat.storage.data_record import DataRecord
from qat.train.weights import read_weights, restore

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What a config names by `_target_`, already resolved.

    Attributes:
        model: data -> float network for its images and classes.
        optimizer: partial of a torch optimizer.
        callbacks: further Lightning callbacks.
        loggers: loggers beside metrics.csv.
        teacher: (data of the student) -> (network of the teacher, its origin); None without one.
    """

    model: Callable[[ImageData], nn.Module]
    optimizer: OptimizerFactory
    callbacks: Sequence[L.Callback] = field(default=())
    loggers: Sequence[Logger] = field(default=())
    teacher: Callable[[ImageData], tuple[nn.Module, str]] | None = None


@dataclass(frozen=True, slots=True)
class Built:
    """Data, prepared network and Lightning module of a run, on the way to training."""

    data: ImageData
    net: nn.Module
    plan: Plan
    lit: LitClassifier
    example: Tensor


def prepared_data(spec: RunSpec, *, before: DataRecord | None = None) -> ImageData:
    """The data of a run, read.

    Args:
        spec: the run's options.
        before: of a run that goes on, its record.

    Raises:
        QatError: data are missing, or a part is empty.
    """
    data = build_data(
        spec.data,
        seed=spec.seed,
        labels=spec.uses_labels,
        unlabelled=spec.unlabelled,
        before=before,
    )
    data.prepare()
    return data


def build(spec: RunSpec, parts: Parts, data: ImageData | None = None) -> Built:
    """Data, network and module; the same weights for the same seed.

    Args:
        spec: the run's options.
        parts: what its config names.
        data: of the run, as `prepared_data` gives them; None reads them.

    Raises:
        QatError: data are missing, the model cannot be built, or `init_from` does not fit.
    """
    # an earlier network of this process (a teacher, a job of a sweep) counts as a recompilation
    torch.compiler.reset()
    if spec.training.threads is not None:
        torch.set_num_threads(spec.training.threads)
    data = data or prepared_data(spec)
    teacher = parts.teacher(data) if parts.teacher is not None else None
    L.seed_everything(spec.seed, verbose=False)
    net = parts.model(data)
    example = images_of(data.sample_batch())[:2]
    prepare(net, spec.quant, example=example)
    plan = resolve(net, spec.quant)
    measures_steps = True
    if spec.init_from is not None:
        weights, name = read_weights(spec.init_from, net), f"init_from={spec.init_from}"
        started = restore(net, plan, weights, weights="latent", name=name)
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
        "warm_start_epochs": spec.warm_epochs,
        "class_weights": data.class_weights(),
        "measures_steps": measures_steps,
        "ema_decay": spec.ema.decay,
    }
    if spec.distill is None or teacher is None:
        return Built(data, net, plan, LitClassifier(net, plan, **options), example)
    lit = distiller(net, plan, spec, *teacher, example=example, **options)
    return Built(data, net, plan, lit, example)


def audit_untrained(built: Built) -> Audit:
    """The audit of the network as it is now, weights projected."""
    project_weights(built.net, built.plan)
    return audit(built.net, built.plan, built.example)
