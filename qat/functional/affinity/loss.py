"""Affinity loss: distances of images as one number, with gradients in closed form.

A form takes unit columns S (N, C, n) and T (N, C', n), and answers one value per image, (N,) in
float64, and the gradient in S, (N, C, n), or None if nobody wants it. Gradients are computed in
forward, together with the values and for a few images at a time: what is kept for backward then
has the size of the student's map, and nothing in between is larger than a tile.
"""

from collections.abc import Callable, Iterator
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from qat.errors import SpecError
from qat.functional.affinity.unit_columns import (
    EPS,
    columns_and_lengths,
    gradient_in_features,
    root,
)
from qat.names import Reduction

Order = Literal[1, 2]
Values = tuple[Tensor, Tensor | None]
AffinityForm = Callable[[Tensor, Tensor, bool], Values]

# entries that are worked on at a time: 1 MB of float32 stays in a CPU's cache, while a GPU wants
# large kernels
_TILE = {"cpu": 1 << 18}
_LARGE_TILE = 1 << 24


def affinity_loss(
    student: Tensor,
    teacher: Tensor,
    form: AffinityForm,
    *,
    order: Order,
    reduction: Reduction,
    eps: float = EPS,
) -> Tensor:
    """One number out of a form's values per image d_b.

        mean:     mean_b d_b / n^2
        authors:  order 1: sum_b d_b / n^2;   order 2: sqrt(sum_b d_b) / n

    Autocast is off inside. At sum_b d_b = 0 the root's slope is taken as 0.

    Args:
        student: (N, C, H, W).
        teacher: (N, C', H, W), a constant.
        form: of S, T and whether the gradient is wanted.
        order: 1 or 2.
        reduction: mean or authors.
        eps: of the unit columns.

    Raises:
        SpecError: order or reduction is unknown, or the shapes do not fit.

    Returns:
        A scalar, float64 if the student is, otherwise float32.
    """
    _check(student, teacher, order=order, reduction=reduction)
    wants_gradient = torch.is_grad_enabled() and student.requires_grad
    with torch.no_grad(), torch.autocast(student.device.type, enabled=False):
        values, gradient = _values(student, teacher, form, eps=eps, wants_gradient=wants_gradient)
    if gradient is not None:
        values = KnownGradient.apply(student, values, gradient)
    positions = student.shape[2:].numel()
    if reduction == "mean":
        total = values.mean() / positions**2
    elif order == 1:
        total = values.sum() / positions**2
    else:
        total = root(values.sum()) / positions
    return total if student.dtype == torch.float64 else total.float()


def entries(x: Tensor, order: Order) -> Tensor:
    """|x| or x^2."""
    return x.abs() if order == 1 else x.square()


def slope(x: Tensor, order: Order) -> Tensor:
    """Derivative of `entries`; 0 at 0."""
    return x.sign() if order == 1 else 2 * x


def pieces(length: int, size: int, *, device: torch.device) -> Iterator[slice]:
    """Slices of `length` items of `size` entries, as many at a time as a tile holds."""
    count = max(1, _TILE.get(device.type, _LARGE_TILE) // max(1, size))
    for start in range(0, length, count):
        yield slice(start, min(start + count, length))


class KnownGradient(torch.autograd.Function):
    """Values per image whose gradient is known: backward scales it, nothing else is kept."""

    generate_vmap_rule = True

    @staticmethod
    def forward(student: Tensor, values: Tensor, gradient: Tensor) -> Tensor:  # noqa: D102
        return values.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: D102
        student, _, gradient = inputs
        ctx.dtype = student.dtype
        ctx.save_for_backward(gradient)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        # once_differentiable would say nothing: `grad` is a constant here, and so is the gradient
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise SpecError(
                "the affinity losses have no second derivative; leave out create_graph=True, or "
                "write ||S^T S - T^T T||^2 with qat.functional.affinity.feature_affinity.affinity"
            )
        (gradient,) = ctx.saved_tensors
        factor = grad.to(gradient.dtype).view(-1, *(1,) * (gradient.ndim - 1))
        return (factor * gradient).to(ctx.dtype), None, None


def _values(
    student: Tensor, teacher: Tensor, form: AffinityForm, *, eps: float, wants_gradient: bool
) -> Values:
    """Values (N,) and the gradient in the student's map, in at least float32."""
    wide = student.dtype if student.dtype == torch.float64 else torch.float32
    gradient = torch.empty_like(student, dtype=wide) if wants_gradient else None
    values = []
    size = max(student.shape[1:].numel(), teacher.shape[1:].numel())
    for images in pieces(len(student), size, device=student.device):
        own, lengths = columns_and_lengths(student[images], eps=eps)
        other, _ = columns_and_lengths(teacher[images], eps=eps)
        value, change = form(own, other.to(own), wants_gradient)
        values.append(value)
        if gradient is not None and change is not None:
            change = gradient_in_features(change, own, lengths, eps=eps)
            gradient[images] = change.view_as(student[images])
    return torch.cat(values), gradient


def _check(student: Tensor, teacher: Tensor, *, order: Order, reduction: Reduction) -> None:
    if order not in (1, 2) or isinstance(order, bool):
        raise SpecError(f"order must be 1 or 2, got {order!r}; 2 is the squared Frobenius norm")
    if reduction not in get_args(Reduction):
        raise SpecError(f"reduction must be mean or authors, got {reduction!r}; choose mean")
    own, other = student.shape, teacher.shape
    if len(own) < 3 or own[:1] + own[2:] != other[:1] + other[2:] or student.numel() == 0:
        raise SpecError(
            f"student {tuple(own)} and teacher {tuple(other)} must be (N, C, H, W), not empty, and "
            "agree in all but their channels; resize the teacher's map to the student's"
        )
