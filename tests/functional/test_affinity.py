"""FA and FFA against their definitions, one image at a time in float64, with their gradients."""

import math

import pytest
import torch

from qat.functional.affinity.feature_affinity import (
    affinity,
    feature_affinity,
    projected_affinity,
    random_directions,
    unit_columns,
)

CHANNELS = [(5, 5), (5, 3), (2, 6)]
# (order, form) that exist, and the reductions
FORMS = [(1, "auto"), (1, "positions"), (2, "auto"), (2, "positions"), (2, "gram")]
REDUCTIONS = ["mean", "authors"]


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def cosines(image, eps=1e-5):
    """Affinity of one image (C, H, W), entry by entry."""
    columns = image.flatten(1).T.tolist()
    lengths = [math.sqrt(sum(x * x for x in column)) + eps for column in columns]
    return torch.tensor(
        [
            [
                sum(x * y for x, y in zip(a, b, strict=True)) / (la * lb)
                for b, lb in zip(columns, lengths, strict=True)
            ]
            for a, la in zip(columns, lengths, strict=True)
        ],
        dtype=torch.float64,
    )


def differences(student, teacher, eps=1e-5):
    return [cosines(s, eps) - cosines(t, eps) for s, t in zip(student, teacher, strict=True)]


def loss_of(matrices, order, reduction, n):
    """Any of the four losses from the matrices (A_s - A_t), or those times Z over root k or k."""
    if reduction == "mean":
        terms = [m.abs().sum() if order == 1 else (m**2).sum() for m in matrices]
        return sum(terms) / len(terms) / n**2
    stack = torch.stack(matrices)
    return torch.linalg.norm(stack.flatten(), ord=order) / n ** (2 if order == 1 else 1)


def forms(channels):
    return [*FORMS, (2, "channels")] if channels[0] == channels[1] else FORMS


CASES = [(c, o, f, r) for c in CHANNELS for o, f in forms(c) for r in REDUCTIONS]


@pytest.mark.parametrize(("channels", "order", "form", "reduction"), CASES)
def test_feature_affinity_by_loops(channels, order, form, reduction):
    s, t = normal(3, channels[0], 2, 3), normal(3, channels[1], 2, 3, seed=1)
    expected = loss_of(differences(s, t), order, reduction, 6)
    got = feature_affinity(s, t, order=order, form=form, reduction=reduction)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=0)
    single = feature_affinity(s.float(), t.float(), order=order, form=form, reduction=reduction)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), expected, rtol=2e-6, atol=0)


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_projected_affinity_by_loops(channels, order, reduction):
    s, t = normal(3, channels[0], 2, 3), normal(3, channels[1], 2, 3, seed=1)
    z = normal(6, 4, seed=2)
    eps = 0.0 if reduction == "authors" else 1e-5
    share = 4 if order == 1 else 2  # k, or its root
    seen = [d @ z / share for d in differences(s, t, eps)]
    got = projected_affinity(s, t, order=order, directions=z, reduction=reduction)
    torch.testing.assert_close(got, loss_of(seen, order, reduction, 6), rtol=1e-12, atol=0)


@pytest.mark.parametrize(("channels", "order", "form", "reduction"), CASES)
def test_gradient_of_feature_affinity(channels, order, form, reduction):
    s, t = normal(2, channels[0], 2, 3).requires_grad_(), normal(2, channels[1], 2, 3, seed=1)
    options = {"order": order, "form": form, "reduction": reduction}
    assert torch.autograd.gradcheck(lambda s: feature_affinity(s, t, **options), s)


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradient_of_projected_affinity(channels, order, reduction):
    s, t = normal(2, channels[0], 2, 3).requires_grad_(), normal(2, channels[1], 2, 3, seed=1)
    options = {"order": order, "columns": 4, "reduction": reduction}
    assert torch.autograd.gradcheck(lambda s: projected_affinity(s, t, **options), s)


def test_unit_columns():
    x = torch.tensor([[[[3.0, 0.0, 6e-6]], [[4.0, 0.0, 8e-6]]]], dtype=torch.float64)
    expected = torch.tensor([[[0.6, 0.0, 0.3], [0.8, 0.0, 0.4]]], dtype=torch.float64)
    torch.testing.assert_close(unit_columns(x), expected, rtol=1e-5, atol=0)
    assert torch.equal(unit_columns(x), unit_columns(x.flatten(2)))
    assert unit_columns(x.half()).dtype == torch.float32
    a = affinity(normal(2, 3, 2, 2))
    torch.testing.assert_close(a[1], cosines(normal(2, 3, 2, 2)[1]), rtol=1e-12, atol=0)


@pytest.mark.parametrize("loss", [feature_affinity, projected_affinity])
def test_gradient_where_the_columns_are_as_short_as_eps(loss):
    s, t = 1e-5 * normal(2, 5, 2, 3), normal(2, 5, 2, 3, seed=1)
    s.requires_grad_()
    (gradient,) = torch.autograd.grad(loss(s, t), s)
    # by autograd through the definition; FA is FFA along the axes
    z = random_directions(6, 15).double() if loss is projected_affinity else torch.eye(6).double()
    share = 15 if loss is projected_affinity else 1
    d = affinity(s) - affinity(t)
    (expected,) = torch.autograd.grad(((d @ z) ** 2).sum() / (2 * 36 * share), s)
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=0)
