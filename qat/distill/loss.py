"""Feature losses: modules that compare the feature maps of a student with those of its teacher."""

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qat.errors import SpecError
from qat.functional.affinity.feature_affinity import Form, feature_affinity, projected_affinity
from qat.functional.distillation import attention_transfer, hint, similarity_preserving
from qat.names import Adapter, FeatureLossName, Reduction


class FeatureLoss(nn.Module):
    """Sum over the tapped layers of a distance between student and teacher maps.

        loss = sum_l compare(adapter_l(s_l), resize(t_l))

    The teacher's map is resized to the student's height and width, bilinearly with aligned
    corners. No gradient flows to the teacher.

    Args:
        adapters: one module per layer for the student's maps, see `channel_adapters`; they learn
            with the student and are no part of it. Empty for none.
    """

    def __init__(self, adapters: Iterable[nn.Module] = ()) -> None:
        super().__init__()
        self.adapters = nn.ModuleList(adapters)

    def forward(
        self, student: Sequence[Tensor], teacher: Sequence[Tensor], *, step: int = 0
    ) -> Tensor:
        """The loss of one batch.

        Args:
            student: maps (N, C, H, W), one per layer.
            teacher: maps (N, C', H', W'), one per layer.
            step: of the training; chooses random directions, where the loss has any.

        Returns:
            A scalar.

        Raises:
            SpecError: the numbers of maps, or their shapes, do not fit.
        """
        wanted = len(self.adapters) or len(student)
        if not len(student) == len(teacher) == wanted:
            raise SpecError(
                f"{len(student)} student maps, {len(teacher)} teacher maps and {wanted} adapters "
                "must pair up; check distill.layers and distill.teacher_layers"
            )
        if self.adapters:
            student = [a(s) for a, s in zip(self.adapters, student, strict=True)]
        terms = [
            self.compare(s, resized(t.detach(), s), layer=layer, step=step)
            for layer, (s, t) in enumerate(zip(student, teacher, strict=True))
        ]
        return torch.stack(terms).sum()

    def compare(self, student: Tensor, teacher: Tensor, *, layer: int, step: int) -> Tensor:
        """Distance of two maps of equal size, a scalar."""
        raise NotImplementedError


class FeatureAffinityLoss(FeatureLoss):
    """FA, exact; see `qat.functional.affinity.feature_affinity.feature_affinity`.

    Args:
        order: 1 (entrywise l1 over n^2) or 2 (squared Frobenius norm over n^2), n = H W.
        form: how order 2 is computed; auto is the cheapest exact form.
        reduction: mean over the batch, or the authors' sums.
        adapters: see FeatureLoss.

    Source: arXiv:2302.10899.
    """

    def __init__(
        self,
        *,
        order: Literal[1, 2] = 2,
        form: Form = "auto",
        reduction: Reduction = "mean",
        adapters: Iterable[nn.Module] = (),
    ) -> None:
        super().__init__(adapters)
        self.order, self.form, self.reduction = order, form, reduction

    def compare(self, student: Tensor, teacher: Tensor, *, layer: int, step: int) -> Tensor:
        """FA of two maps."""
        return feature_affinity(
            student, teacher, order=self.order, form=self.form, reduction=self.reduction
        )


class ProjectedAffinityLoss(FeatureLoss):
    """FFA, by random directions; see `qat.functional.affinity.feature_affinity.projected_affinity`.

    The directions are a function of (seed, layer, step), so a resumed run draws the same ones, and
    no other random number is touched.

    Args:
        columns: k, directions per layer and step, >= 1.
        order: 1 or 2; only order 2 estimates what FA computes.
        directions: fresh at each step, or fixed.
        seed: of the directions.
        reduction: mean over the batch, or the authors' sums.
        adapters: see FeatureLoss.

    Source: arXiv:2302.10899. Unlike the authors' code, which seeds the global generator at each
    call and so keeps the directions fixed.
    """

    def __init__(
        self,
        *,
        columns: int = 15,
        order: Literal[1, 2] = 2,
        directions: Literal["fresh", "fixed"] = "fresh",
        seed: int = 0,
        reduction: Reduction = "mean",
        adapters: Iterable[nn.Module] = (),
    ) -> None:
        super().__init__(adapters)
        self.columns, self.order, self.reduction = columns, order, reduction
        self.is_fresh, self.seed = directions == "fresh", seed

    def compare(self, student: Tensor, teacher: Tensor, *, layer: int, step: int) -> Tensor:
        """FFA of two maps."""
        drawn_at = step if self.is_fresh else 0
        seed = random.Random(f"{self.seed} {layer} {drawn_at}").getrandbits(63)
        return projected_affinity(
            student,
            teacher,
            columns=self.columns,
            order=self.order,
            generator=torch.Generator().manual_seed(seed),  # of the CPU: the same on any device
            reduction=self.reduction,
        )


class MapLoss(FeatureLoss):
    """Feature loss by a plain function of two maps, without options of its own.

    Args:
        function: (student map, teacher map of the same height and width) -> scalar.
        adapters: see FeatureLoss.
    """

    def __init__(
        self, function: Callable[[Tensor, Tensor], Tensor], *, adapters: Iterable[nn.Module] = ()
    ) -> None:
        super().__init__(adapters)
        self.function = function

    def compare(self, student: Tensor, teacher: Tensor, *, layer: int, step: int) -> Tensor:
        """The function of two maps."""
        return self.function(student, teacher)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A feature loss by name: what makes it, and what it asks of maps.

    Attributes:
        make: (adapters=..., and `options`) -> the loss.
        options: fields of `FeatureSpec` that it takes, and `seed` where it draws.
        has_equal_channels: whether it compares channel by channel.
        has_positions: whether a map of a single position says nothing to it.
    """

    make: Callable[..., FeatureLoss]
    options: tuple[str, ...] = ()
    has_equal_channels: bool = False
    has_positions: bool = False


COMPARISONS: dict[FeatureLossName, Comparison] = {
    "affinity": Comparison(
        make=FeatureAffinityLoss, options=("order", "reduction"), has_positions=True
    ),
    "projected_affinity": Comparison(
        make=ProjectedAffinityLoss,
        options=("order", "reduction", "columns", "directions", "seed"),
        has_positions=True,
    ),
    "hint": Comparison(make=partial(MapLoss, hint), has_equal_channels=True),
    "attention": Comparison(make=partial(MapLoss, attention_transfer)),
    "similarity": Comparison(make=partial(MapLoss, similarity_preserving)),
}


def channel_adapters(
    kind: Adapter, student: Sequence[int], teacher: Sequence[int]
) -> list[nn.Module]:
    """Modules that give each student map the teacher's channels: a 1 x 1 convolution with bias.

    Args:
        kind: none, conv, or conv_relu (a ReLU behind it, as the FAQD authors' code has it).
        student: channels of the student's maps.
        teacher: channels of the teacher's maps.

    Returns:
        One module per layer; empty for none.
    """
    if kind == "none":
        return []
    convs: list[nn.Module] = [
        nn.Conv2d(own, other, kernel_size=1) for own, other in zip(student, teacher, strict=True)
    ]
    return [nn.Sequential(conv, nn.ReLU()) for conv in convs] if kind == "conv_relu" else convs


def resized(features: Tensor, like: Tensor) -> Tensor:
    """`features` (N, C, H, W) at the height and width of `like`, bilinear with aligned corners."""
    if features.shape[-2:] == like.shape[-2:]:
        return features
    return F.interpolate(features, like.shape[-2:], mode="bilinear", align_corners=True)
