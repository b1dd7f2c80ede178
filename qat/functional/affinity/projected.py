"""Fast feature affinity (FFA): distance of two affinities, seen along random directions."""

import torch
from torch import Tensor

from qat.errors import SpecError
from qat.functional.affinity.forms import factors
from qat.functional.affinity.loss import Order, Values, affinity_loss, entries, slope
from qat.functional.affinity.unit_columns import EPS
from qat.names import Reduction


def projected_affinity(
    student: Tensor,
    teacher: Tensor,
    *,
    columns: int = 15,
    order: Order = 2,
    directions: Tensor | None = None,
    generator: torch.Generator | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """FFA, the distance between affinities along k directions Z with entries N(0, 1).

        order 1: sum_il |(A_s - A_t) Z|_il / (k n^2)
        order 2: ||(A_s - A_t) Z||_F^2 / (k n^2)

    Order 2 is an unbiased estimate of FA of order 2, with relative standard deviation
    sqrt(2 / k) ||D^T D||_F / ||D||_F^2 <= sqrt(2 / k), D = A_s - A_t. Order 1 is no estimate of
    FA of order 1: its mean is sqrt(2 / pi) sum_i ||row_i(D)||_2 / n^2. The gradient needs many
    more directions than the value, `scripts/affinity.py` measures how many.

    Args:
        student: (N, C, H, W).
        teacher: (N, C', H, W), a constant.
        columns: k >= 1; not used when directions are given.
        order: 1 or 2.
        directions: Z, (n, k), shared by the images of the batch.
        generator: draws Z if no directions are given; without either Z is the same in every call.
        reduction: mean over the batch; authors: as in their code, the sum over the batch for
            order 1, the root of the sum over the batch for order 2, and unit columns without eps.

    Raises:
        SpecError: the shapes do not fit, or an option is unknown or out of range.

    Returns:
        A scalar.

    Source: arXiv:2302.10899. Unlike the authors' code the global generator is left alone.
    """
    positions = student.shape[2:].numel()
    if directions is None:
        directions = random_directions(positions, columns, generator=generator)
    if directions.ndim != 2 or directions.shape[0] != positions or directions.shape[1] == 0:
        raise SpecError(
            f"directions must be (n, k) with n = {positions} positions and k >= 1, got "
            f"{tuple(directions.shape)}; draw them with random_directions"
        )
    z = directions.detach().to(student.device)
    return affinity_loss(
        student,
        teacher,
        lambda s, t, wants: by_directions(s, t, z.to(s), order=order, wants_gradient=wants),
        order=order,
        reduction=reduction,
        eps=0.0 if reduction == "authors" else EPS,
    )


def random_directions(
    positions: int, columns: int, *, generator: torch.Generator | None = None
) -> Tensor:
    """Directions Z, (n, k) float32 with entries N(0, 1), on the device of the generator.

    Args:
        positions: n.
        columns: k >= 1.
        generator: its state moves on; None for a fresh one with seed 0, on the CPU.

    Raises:
        SpecError: columns is below 1.
    """
    if not isinstance(columns, int) or columns < 1:
        raise SpecError(f"columns must be a whole number >= 1, got {columns}; the authors take 15")
    if generator is None:
        generator = torch.Generator().manual_seed(0)
    return torch.randn(positions, columns, generator=generator, device=generator.device)


def by_directions(
    student: Tensor, teacher: Tensor, directions: Tensor, *, order: Order, wants_gradient: bool
) -> Values:
    """Values per image of FFA times n^2, and their gradient; no n x n matrix.

        Y = S^T (S Z) - T^T (T Z);   order 1: sum_il |Y_il| / k,   order 2: sum_il Y_il^2 / k

    8 C n k multiplications per image for C = C'.

    Args:
        student: S, unit columns (N, C, n).
        teacher: T, unit columns (N, C', n).
        directions: Z, (n, k).
        order: 1 or 2.
        wants_gradient: whether to compute the gradient.
    """
    columns = directions.shape[1]
    (a, b), (c, d) = factors(student, teacher)
    y = torch.baddbmm(a.mT @ (b @ directions), c.mT, d @ directions)
    values = entries(y, order).sum((1, 2)).double() / columns
    if not wants_gradient:
        return values, None
    u = slope(y, order) / columns
    gradient = torch.baddbmm((student @ u) @ directions.mT, student @ directions, u.mT)
    return values, gradient
