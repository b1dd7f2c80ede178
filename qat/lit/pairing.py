"""Layer pairing of a student and a teacher; whatever does not fit is refused here."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from qat.distill.loss import COMPARISONS, FeatureLoss, channel_adapters
from qat.distill.teacher import Answer, Teacher
from qat.errors import SpecError
from qat.lit.distiller import LitDistiller
from qat.quantize.modes import evaluating
from qat.quantize.plan import Plan
from qat.quantize.stages import check_layers, feature_maps, stage_outputs
from qat.ranks import group as ranks
from qat.spec.distill import DistillSpec, FeatureSpec
from qat.spec.model import first_line
from qat.spec.run import RunSpec


def distiller(
    net: nn.Module,
    plan: Plan,
    spec: RunSpec,
    teacher: nn.Module,
    origin: str,
    *,
    example: Tensor,
    classes: int,
    **options: Any,
) -> LitDistiller:
    """The Lightning module of a student and its teacher.

    Args:
        net: the student, prepared.
        plan: of it.
        spec: of the run; `spec.distill` is set.
        teacher: float or quantized network; is frozen.
        origin: of the teacher, for records.
        example: images (N, C, H, W) of the student's task, N >= 2.
        classes: K.
        options: of `LitDistiller`.

    Raises:
        SpecError: the teacher cannot take the images, has other classes, or the layers to compare
            do not exist or do not pair up; says what to change.
    """
    distill = spec.distill
    assert distill is not None  # the caller asks for a distiller only then
    _check_answer(teacher, example, classes, origin)
    _check_processes(distill.features)
    own: list[str] = []
    others: list[str] = []
    if distill.features.loss != "none":
        own, others = paired_layers(net, teacher, example, distill)
    frozen = Teacher(teacher, layers=others, origin=origin)
    feature_loss = None
    if own:
        shapes = feature_maps(net, example)
        maps = [shapes[layer] for layer in own]
        feature_loss = _feature_loss(distill.features, maps, frozen.ask(example), seed=spec.seed)
        _check_maps(distill.features, own, maps)
    return LitDistiller(
        net,
        plan,
        teacher=frozen,
        distill=distill,
        layers=own,
        feature_loss=feature_loss,
        classes=classes,
        **options,
    )


def paired_layers(
    net: nn.Module, teacher: nn.Module, example: Tensor, distill: DistillSpec
) -> tuple[list[str], list[str]]:
    """Names of the student's and of the teacher's layers to compare, pair by pair.

    Those of the options, else the stages of both in their order.

    Raises:
        SpecError: a name is no feature map, or the stages found are not equally many.
    """
    if distill.layers is not None:
        own = list(distill.layers)
        others = list(distill.teacher_layers or own)
        check_layers(net, example, own, key="distill.layers")
        key = "distill.teacher_layers" if distill.teacher_layers else "distill.layers (teacher)"
        check_layers(teacher, example, others, key=key)
        return own, others
    own, others = stage_outputs(net, example), stage_outputs(teacher, example)
    if len(own) != len(others):
        raise SpecError(
            f"the student has {len(own)} stages ({', '.join(own)}), the teacher {len(others)} "
            f"({', '.join(others)}); pair them by distill.layers and distill.teacher_layers"
        )
    return own, others


@torch.no_grad()
def _check_answer(teacher: nn.Module, example: Tensor, classes: int, origin: str) -> None:
    """Refuse a teacher that cannot take the images, or has other classes."""
    shape = tuple(example.shape[1:])
    try:
        with evaluating(teacher):
            logits = teacher(example)
    except (RuntimeError, ValueError, AssertionError, IndexError) as error:
        raise SpecError(
            f"the teacher {origin} cannot take images of shape {shape} ({first_line(error)}); "
            "choose a teacher for such images, or change data or data.image_size"
        ) from error
    if not isinstance(logits, Tensor) or logits.shape != (len(example), classes):
        found = tuple(logits.shape[1:]) if isinstance(logits, Tensor) else type(logits).__name__
        raise SpecError(
            f"the teacher {origin} gives {found} for an image, the student's task has {classes} "
            "classes; choose a teacher of the same classes (distill.teacher=null trains one)"
        )
    if not bool(logits.isfinite().all()):
        raise SpecError(f"the teacher {origin} gives logits that are not finite; choose another")


def _feature_loss(
    features: FeatureSpec, maps: Sequence[torch.Size], answer: Answer, *, seed: int
) -> FeatureLoss:
    """The loss between feature maps that the options name, with its adapters."""
    own, others = [shape[1] for shape in maps], [t.shape[1] for t in answer.maps]
    row = COMPARISONS[features.loss]
    if row.has_equal_channels and features.adapter == "none" and own != others:
        raise SpecError(
            f"distill.features.loss={features.loss} compares channel by channel, and the "
            f"student has {own}, the teacher {others}; use distill.features.adapter=conv"
        )
    options = {k: seed if k == "seed" else getattr(features, k) for k in row.options}
    return row.make(adapters=channel_adapters(features.adapter, own, others), **options)


def _check_maps(features: FeatureSpec, layers: Sequence[str], maps: Sequence[torch.Size]) -> None:
    """Refuse losses between positions where there is one, as its affinity with itself is 1."""
    for layer, (_, _, h, w) in zip(layers, maps, strict=True):
        if h * w == 1 and COMPARISONS[features.loss].has_positions:
            raise SpecError(
                f"distill.layers: {layer} has one position, whose affinity with itself says "
                "nothing; name layers of larger maps, or use larger images"
            )


def _check_processes(features: FeatureSpec) -> None:
    """Refuse losses of a whole batch where several processes share it."""
    wrong = {
        "loss=similarity": features.loss == "similarity",
        "reduction=authors": features.reduction == "authors" and "affinity" in features.loss,
    }
    for option, is_asked in wrong.items():
        if is_asked and ranks.size() > 1:
            raise SpecError(
                f"distill.features.{option} is of a whole batch, which {ranks.size()} processes "
                "share; use trainer.devices=1, or another loss"
            )
