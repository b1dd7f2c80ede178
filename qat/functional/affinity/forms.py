"""Affinity distances in closed form: three exact forms that differ in cost only.

All take unit columns S (N, C, n) and T (N, C', n), A_s = S^T S and A_t = T^T T, and answer as
`qat.functional.affinity.loss` says: values (N,) in float64, and the gradient in S or None.
"""

import math
from collections.abc import Iterator
from typing import Literal, get_args

import torch
from torch import Tensor

from qat.errors import SpecError
from qat.functional.affinity.loss import Order, Values, entries, pieces, slope

ExactForm = Literal["positions", "channels", "gram"]
Form = Literal["auto", "positions", "channels", "gram"]

# time per multiplication, beside that of positions: on one CPU core, C from 16 to 512
_RELATIVE_TIME = {"positions": 1.0, "channels": 1.2, "gram": 2.2}


def by_positions(
    student: Tensor, teacher: Tensor, *, order: Order = 2, wants_gradient: bool = True
) -> Values:
    """Distances by the n x n matrices, one tile of them at a time.

        order 1: sum_ij |A_s - A_t|_ij           gradient 2 S sign(A_s - A_t)
        order 2: sum_ij (A_s - A_t)_ij^2         gradient 4 S (A_s - A_t)

    (2 C + C') n^2 multiplications per image. A few tiles are held at a time, whatever n is.

    Args:
        student: S, (N, C, n).
        teacher: T, (N, C', n).
        order: 1 or 2.
        wants_gradient: whether to compute the gradient.
    """
    values = student.new_zeros(len(student), dtype=torch.float64)
    gradient = torch.empty_like(student) if wants_gradient else None
    (a, b), (c, d) = factors(student, teacher)
    for images, rows in _tiles(student):
        tile = a[images, :, rows].mT @ b[images]
        tile = tile.baddbmm_(c[images, :, rows].mT, d[images])
        values[images] += entries(tile, order).sum((1, 2))
        if gradient is not None:
            gradient[images, :, rows] = student[images] @ slope(tile, order).mul_(2).mT
    return values, gradient


def by_channels(student: Tensor, teacher: Tensor, *, wants_gradient: bool = True) -> Values:
    """Squared Frobenius distances by C x C products; needs C = C'.

    With D = S - T and P = S + T, A_s - A_t = (P^T D + D^T P) / 2, hence

        ||A_s - A_t||_F^2 = (<P P^T, D D^T> + <P D^T, D P^T>) / 2
        gradient            2 (S P^T D + S D^T P)

    Every term carries D, so nothing cancels where T is close to S, as it does in the plain
    expansion (`by_gram`) in float32. Where A_t is close to A_s but T far from S (rotated channels)
    the terms cancel: the value then has an absolute error near 1e-7 ||A_s||_F^2.
    5 C^2 n multiplications per image.

    Args:
        student: S, (N, C, n).
        teacher: T, (N, C, n).
        wants_gradient: whether to compute the gradient.
    """
    channels = student.shape[1]
    difference = student - teacher
    both = torch.cat([student + teacher, difference], dim=1)
    products = both[:, :channels] @ both.mT
    pp, pd = products[:, :, :channels], products[:, :, channels:]
    dd = difference @ difference.mT
    values = (_inner(pp, dd) + _inner(pd, pd.mT)).mul(0.5).clamp(min=0)
    if not wants_gradient:
        return values, None
    # S = (P + D) / 2 makes the gradient one product with what is at hand
    return values, torch.cat([pd + dd, pp + pd.mT], dim=2) @ both


def by_gram(student: Tensor, teacher: Tensor, *, wants_gradient: bool = True) -> Values:
    """Squared Frobenius distances by Gram matrices of channels; C and C' may differ.

        ||A_s - A_t||_F^2 = ||S S^T||_F^2 - 2 ||S T^T||_F^2 + ||T T^T||_F^2
        gradient            4 (S S^T S - S T^T T)

    In float64, because the terms cancel. 2 C^2 n + 2 C C' n + C'^2 n multiplications per image.

    Args:
        student: S, (N, C, n).
        teacher: T, (N, C', n).
        wants_gradient: whether to compute the gradient.
    """
    s, t = student.double(), teacher.double()
    ss, st, tt = s @ s.mT, s @ t.mT, t @ t.mT
    values = (_inner(ss, ss) - 2 * _inner(st, st) + _inner(tt, tt)).clamp(min=0)
    if not wants_gradient:
        return values, None
    return values, torch.baddbmm(ss @ s, st, t, beta=4, alpha=-4).to(student.dtype)


def factors(student: Tensor, teacher: Tensor) -> tuple[tuple[Tensor, Tensor], ...]:
    """Pairs (a, b) and (c, d) with A_s - A_t = a^T b + c^T d.

    For C = C' they are P, D / 2 and D / 2, P, as in `by_channels`: then small differences come
    from small numbers, and not out of two large ones.
    """
    if student.shape != teacher.shape:
        return (student, student), (teacher, -teacher)
    total, half = student + teacher, 0.5 * (student - teacher)
    return (total, half), (half, total)


def cheapest_form(positions: int, channels: int, teacher_channels: int) -> ExactForm:
    """The fastest form for order 2: the n x n matrix below n = 2 C or so, C x C products above.

    By the number of multiplications that value and gradient take. For C = C' = 64 the choice
    changes at n = 128, for C = 64 and C' = 128 at n = 352.

    Args:
        positions: n.
        channels: C, of the student.
        teacher_channels: C'.

    >>> cheapest_form(8 * 8, 64, 64), cheapest_form(16 * 16, 64, 64), cheapest_form(32 * 32, 64, 32)
    ('positions', 'channels', 'gram')
    """
    n, c, t = positions, channels, teacher_channels
    costs: dict[ExactForm, float] = {
        "positions": (2 * c + t) * n * n,
        "channels": 5 * c * c * n if c == t else math.inf,
        "gram": (2 * c * c + 2 * c * t + t * t) * n,
    }
    return min(costs, key=lambda form: _RELATIVE_TIME[form] * costs[form])


def exact_values(
    student: Tensor, teacher: Tensor, *, form: Form, order: Order, wants_gradient: bool
) -> Values:
    """Values and gradient by one of the forms.

    Raises:
        SpecError: the form is unknown, or fits neither the order nor the channels.
    """
    form = chosen_form(form, student, teacher, order=order)
    if form == "positions":
        if order == 2 and student.shape != teacher.shape:
            # there is no D to start from, so the difference comes out of two large numbers
            value, gradient = by_positions(
                student.double(), teacher.double(), wants_gradient=wants_gradient
            )
            return value, None if gradient is None else gradient.to(student.dtype)
        return by_positions(student, teacher, order=order, wants_gradient=wants_gradient)
    by_products = by_channels if form == "channels" else by_gram
    return by_products(student, teacher, wants_gradient=wants_gradient)


def chosen_form(form: Form, student: Tensor, teacher: Tensor, *, order: Order) -> ExactForm:
    """`form`, with auto resolved.

    Raises:
        SpecError: the form is unknown, or fits neither the order nor the channels.
    """
    if form not in get_args(Form):
        raise SpecError(f"form must be one of {', '.join(get_args(Form))}; got {form!r}")
    if order == 1 and form not in ("auto", "positions"):
        raise SpecError(f"form={form} computes order 2 only; use form=positions with order=1")
    positions, own, other = student.shape[2], student.shape[1], teacher.shape[1]
    if form == "channels" and own != other:
        raise SpecError(
            f"form=channels needs equal channels, got {own} and {other}; use form=gram or form=auto"
        )
    if form != "auto":
        return form
    return "positions" if order == 1 else cheapest_form(positions, own, other)


def _tiles(columns: Tensor) -> Iterator[tuple[slice, slice]]:
    """Parts of the stack of n x n matrices: several whole ones, or some rows of one."""
    batch, _, positions = columns.shape
    for images in pieces(batch, positions**2, device=columns.device):
        for rows in pieces(positions, positions, device=columns.device):
            yield images, rows


def _inner(x: Tensor, y: Tensor) -> Tensor:
    """Inner products (N,) of stacks of matrices, summed in float64."""
    return (x * y).sum((1, 2), dtype=torch.float64)
