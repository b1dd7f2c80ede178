"""Distillation options: the config group `distill`; no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from qat.errors import SpecError
from qat.names import Adapter, FeatureLossName, LogitLossName, Reduction
from qat.spec.schema import check, option

# a teacher that is a name, not a path: torchvision/resnet50, timm/resnet18.a1_in1k
PRETRAINED = ("torchvision/", "timm/")


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherTraining:
    """How the float teacher is trained when `distill.teacher` is null.

    Attributes:
        epochs: of its training; null takes trainer.max_epochs.
        lr: its learning rate; null takes optimizer.lr.
        seed: of its run; the same teacher serves students of every seed.
        folder: where trained teachers are kept, by the hash of their configs.
    """

    epochs: int | None = option(None, low=1)
    lr: float | None = option(None, above=0)
    seed: int = option(1, low=0, high=2**32 - 1)
    folder: str = "runs/teachers"

    def __post_init__(self) -> None:
        check(self, "distill.teacher_training")


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitSpec:
    """The loss between the logits of student and teacher.

    Attributes:
        loss: mse (mean over images and classes), kl (at the temperature, times its square) or none.
        weight: in the total, >= 0.
        temperature: T of kl, > 0.
    """

    loss: LogitLossName = "mse"
    weight: float = option(1.0, low=0)
    temperature: float = option(4.0, above=0)

    def __post_init__(self) -> None:
        check(self, "distill.logits")


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureSpec:
    """The loss between the feature maps of student and teacher, summed over the tapped layers.

    Attributes:
        loss: affinity (FA), projected_affinity (FFA), hint (FitNet), attention (attention
            transfer), similarity (similarity-preserving) or none.
        weight: in the total, >= 0.
        order: 1 or 2, of affinity and projected_affinity.
        columns: k, random directions of projected_affinity, >= 1.
        directions: fresh (drawn anew at each step) or fixed.
        reduction: mean (over the batch), or authors (sums, as their code); of the affinities.
        adapter: what stands between a student map and the loss: none, conv (1 x 1, to the
            teacher's channels) or conv_relu.
    """

    loss: FeatureLossName = "affinity"
    weight: float = option(1.0, low=0)
    order: Literal[1, 2] = 2
    columns: int = option(15, low=1)
    directions: Literal["fresh", "fixed"] = "fresh"
    reduction: Reduction = "mean"
    adapter: Adapter = "none"

    def __post_init__(self) -> None:
        check(self, "distill.features")


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillSpec:
    """The config group `distill`; without it a run learns from labels alone.

        loss = logits.weight L_logits + features.weight sum_layers L_features + label_weight CE

    Attributes:
        labels: whether labels of the training images are used; must be said.
        teacher: run folder, checkpoint, torchvision/<name> or timm/<name>; null trains a float
            teacher first.
        teacher_model: the teacher's network, as the group `model`; null is the student's.
            For a checkpoint outside of a run folder, and for a teacher that is to be trained.
        teacher_training: see TeacherTraining.
        label_weight: of the cross-entropy, >= 0; without labels it has no effect.
        logits: see LogitSpec.
        features: see FeatureSpec.
        layers: modules of the student whose outputs are compared; null finds the stages.
        teacher_layers: modules of the teacher, one for each; null is the same names.
        select: what chooses the epoch: accuracy (on validation labels), agreement (with the
            teacher on validation images) or last; null is accuracy with labels, else agreement.
    """

    labels: bool = option(hint="use distill=faqd, or distill=faqd_label_free")
    teacher: str | None = None
    teacher_model: Mapping[str, Any] | None = None
    teacher_training: TeacherTraining = field(default_factory=TeacherTraining)
    label_weight: float = option(0.3, low=0)
    logits: LogitSpec = field(default_factory=LogitSpec)
    features: FeatureSpec = field(default_factory=FeatureSpec)
    layers: tuple[str, ...] | None = None
    teacher_layers: tuple[str, ...] | None = None
    select: Literal["accuracy", "agreement", "last"] | None = None

    def __post_init__(self) -> None:
        check(self, "distill")
        self._check_labels()
        self._check_layers()
        weights = [part.weight for part in (self.logits, self.features) if part.loss != "none"]
        if (weights and not any(weights)) or not (weights or self.labels):
            raise SpecError(
                "distill has nothing to learn from the teacher: distill.logits and "
                "distill.features are none or of weight 0; raise one, or use distill=none"
            )

    def _check_labels(self) -> None:
        if self.select == "accuracy" and not self.labels:
            raise SpecError(
                "distill.select=accuracy needs validation labels, which distill.labels=false "
                "rules out; use agreement or last"
            )

    def _check_layers(self) -> None:
        if self.layers is None and self.teacher_layers is not None:
            raise SpecError("distill.teacher_layers needs distill.layers; name the student's too")
        own, other = self.layers, self.teacher_layers
        if own is not None and (not own or (other is not None and len(own) != len(other))):
            raise SpecError(
                f"distill.layers and distill.teacher_layers must pair up; got {list(own)} and "
                f"{list(other or ())}"
            )

    @property
    def is_none(self) -> bool:
        """Whether nothing but labels is asked for, as distill=none does."""
        return self.labels and self.logits.loss == self.features.loss == "none"

    @property
    def selection(self) -> Literal["accuracy", "agreement", "last"]:
        """What chooses the epoch."""
        return self.select or ("accuracy" if self.labels else "agreement")

    @property
    def is_pretrained_name(self) -> bool:
        """Whether the teacher is a name of torchvision or timm."""
        return self.teacher is not None and self.teacher.startswith(PRETRAINED)
