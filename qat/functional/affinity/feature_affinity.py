"""Feature affinity: how alike the positions of an image look to a student and to its teacher.

FA compares the cosines between all pairs of positions, FFA sees their difference along random
directions. Neither looks at single channels: any rotation of them, and any positive factor per
position, leaves the losses as they are, and student and teacher may have different widths. The
teacher is a constant: no gradient flows to it.
"""

import torch
from torch import Tensor

from qat.functional.affinity.forms import Form, exact_values
from qat.functional.affinity.loss import Order, affinity_loss
from qat.functional.affinity.projected import projected_affinity, random_directions
from qat.functional.affinity.unit_columns import unit_columns
from qat.names import Reduction

__all__ = [
    "Form",
    "Order",
    "affinity",
    "feature_affinity",
    "projected_affinity",
    "random_directions",
    "unit_columns",
]


def affinity(features: Tensor) -> Tensor:
    """Cosines between the positions of each image.

        A = S^T S, S the unit columns

    Args:
        features: (N, C, H, W) or (N, C, n).

    Returns:
        (N, n, n), entries in [-1, 1]; the diagonal is 1 up to the eps of `unit_columns`.

    Raises:
        SpecError: features have neither three nor four dimensions.
    """
    columns = unit_columns(features)
    with torch.autocast(columns.device.type, enabled=False):
        return columns.mT @ columns


def feature_affinity(
    student: Tensor,
    teacher: Tensor,
    *,
    order: Order = 2,
    form: Form = "auto",
    reduction: Reduction = "mean",
) -> Tensor:
    """FA, the distance between the affinities of a student and its teacher, exact.

        order 1: sum_ij |A_s - A_t|_ij / n^2
        order 2: ||A_s - A_t||_F^2 / n^2

    Where S is close to T, the value is right to a relative 1e-7 in float32, and to 2e-6 where all
    columns share a large component. Where only the affinities are close (rotated channels), the
    form by channels has an absolute error near 1e-7 ||A_s||_F^2 / n^2; form="gram" tells more.

    Order 2 needs no n x n matrix, see `qat.functional.affinity.forms`. The gradient is computed in
    closed form along with the value; what is kept for backward has the size of the features.

    Args:
        student: (N, C, H, W).
        teacher: (N, C', H, W), a constant.
        order: 1 or 2.
        form: positions (n x n matrices, in tiles), channels (C x C products, needs C = C'), gram
            (C x C Gram matrices in float64); auto is the cheapest for the shape, see
            `qat.functional.affinity.forms.cheapest_form`. Order 1 has positions only.
        reduction: mean over the batch; authors: as in their code, the sum over the batch for
            order 1, and ||A_s - A_t||_F / n of the whole batch (not squared) for order 2.

    Raises:
        SpecError: the shapes do not fit, an option is unknown, or the form fits neither the order
            nor the channels.

    Returns:
        A scalar.

    Source: arXiv:2302.10899. Unlike the authors' code, order 2 is a square and the batch a mean.

    >>> x = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]])  # two positions at a right angle
    >>> y = torch.tensor([[[[1.0, 1.0]], [[0.0, 0.0]]]])  # and two that are parallel
    >>> round(float(feature_affinity(x, y)), 3)
    0.5
    """
    return affinity_loss(
        student,
        teacher,
        lambda s, t, wants: exact_values(s, t, form=form, order=order, wants_gradient=wants),
        order=order,
        reduction=reduction,
    )
