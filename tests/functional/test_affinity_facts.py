"""What FA and FFA ignore, keep constant and refuse."""

import random

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qat.errors import SpecError
from qat.functional.affinity.feature_affinity import (
    feature_affinity,
    projected_affinity,
    random_directions,
    unit_columns,
)
from support.products import mostly_slow

FORMS = [
    (1, "auto"),
    (1, "positions"),
    *((2, f) for f in ("auto", "positions", "channels", "gram")),
]
REDUCTIONS = ["mean", "authors"]


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


LOSSES = [
    *(lambda s, t, o=o, f=f, r=r: feature_affinity(s, t, order=o, form=f, reduction=r)
      for o, f in FORMS for r in REDUCTIONS),
    *(lambda s, t, o=o, r=r: projected_affinity(s, t, order=o, reduction=r)
      for o in (1, 2) for r in REDUCTIONS),
]  # fmt: skip


@pytest.mark.parametrize("loss", mostly_slow(LOSSES, day=range(0, len(LOSSES), 3)))
@given(st.integers(0, 10**6), st.integers(1, 3), st.integers(1, 9), st.integers(1, 12))
def test_what_the_losses_ignore(loss, seed, batch, channels, positions):
    s, t = (
        torch.nn.functional.normalize(normal(batch, channels, 1, positions, seed=k), dim=1)
        for k in (seed, seed + 1)
    )
    value = loss(s, t)
    assert value >= 0
    torch.testing.assert_close(loss(t, s), value, rtol=1e-9, atol=1e-7)
    assert loss(s, s) == 0
    mixing = torch.linalg.qr(normal(channels, channels, seed=seed + 2))[0]
    scale = 1 + 3 * normal(batch, 1, 1, positions, seed=seed + 3).square()
    changed = torch.einsum("dc,nchw->ndhw", mixing, s) * scale
    # the eps of 1e-5 on lengths of one and more is not scaled
    torch.testing.assert_close(loss(changed, t), value, rtol=1e-3, atol=1e-3)


def test_equal_cosines_are_needed_for_zero():
    s, t = normal(2, 4, 3, 3), normal(2, 4, 3, 3)
    t[1, :, 2, 2] *= -1
    assert feature_affinity(s, t) > 0.01
    assert projected_affinity(s, t) > 0.01


@pytest.mark.parametrize("loss", LOSSES)
def test_at_equality_the_gradient_is_zero(loss):
    s = normal(2, 4, 3, 3).requires_grad_()
    loss(s, s.detach()).backward()
    assert s.grad is not None
    assert torch.equal(s.grad, torch.zeros_like(s))


def test_the_teacher_is_a_constant():
    s, t = normal(2, 4, 3, 3).requires_grad_(), normal(2, 4, 3, 3, seed=1).requires_grad_()
    for loss in LOSSES:
        loss(s, t).backward()
    assert t.grad is None
    assert not feature_affinity(s.detach(), t).requires_grad


def test_a_dead_position_harms_nothing():
    s, t = normal(1, 3, 2, 2), normal(1, 3, 2, 2, seed=1)
    s[:, :, 0, 0] = 0
    t[:, :, 1, 1] = 0
    for loss in LOSSES:
        live = s.clone().requires_grad_()
        value = loss(live, t)
        value.backward()
        assert value > 0
        assert live.grad.isfinite().all()


def test_autocast_changes_nothing():
    s, t = normal(2, 8, 4, 4).float(), normal(2, 8, 4, 4, seed=1).float()
    for loss in LOSSES:
        plain, cast = (s.clone().requires_grad_() for _ in range(2))
        loss(plain, t).backward()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert (s.flatten(1) @ s.flatten(1).T).dtype == torch.bfloat16
            value = loss(cast, t)
        value.backward()
        assert value.dtype == torch.float32
        assert torch.equal(value, loss(s, t))
        assert torch.equal(plain.grad, cast.grad)


def test_half_precision_maps_meet_in_single_precision():
    s, t = normal(2, 8, 4, 4).bfloat16().requires_grad_(), normal(2, 8, 4, 4, seed=1).half()
    for loss in LOSSES:
        value = loss(s, t)
        assert torch.equal(value, loss(s.detach().float(), t.float()))
        (gradient,) = torch.autograd.grad(value, s)
        assert gradient.dtype == torch.bfloat16


def test_random_state_is_left_alone():
    s, t = normal(1, 3, 2, 2), normal(1, 3, 2, 2, seed=1)
    state = torch.get_rng_state(), numpy.random.get_state()[1].copy(), random.getstate()
    first = projected_affinity(s, t, generator=torch.Generator().manual_seed(3))
    assert projected_affinity(s, t) == projected_affinity(s, t)
    assert torch.equal(torch.get_rng_state(), state[0])
    assert (numpy.random.get_state()[1] == state[1]).all()
    assert random.getstate() == state[2]
    torch.manual_seed(5)
    generator = torch.Generator().manual_seed(3)
    assert projected_affinity(s, t, generator=generator) == first
    assert projected_affinity(s, t, generator=generator) != first
    z = random_directions(4, 15, generator=torch.Generator().manual_seed(3))
    assert projected_affinity(s, t, directions=z) == first


S, T = torch.ones(2, 3, 4, 4), torch.ones(2, 5, 4, 4)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: feature_affinity(S, T[:1]), ["(2, 3, 4, 4)", "(1, 5, 4, 4)", "channels"]),
        (lambda: feature_affinity(S, T[:, :, :2]), ["(2, 3, 4, 4)", "(2, 5, 2, 4)", "resize"]),
        (lambda: projected_affinity(S, T[..., :3]), ["(2, 3, 4, 4)", "(2, 5, 4, 3)", "resize"]),
        (lambda: projected_affinity(S, T.mT[:, :, :2]), ["(2, 3, 4, 4)", "resize"]),
        (lambda: feature_affinity(S[0, 0], T), ["(4, 4)", "(N, C, H, W)"]),
        (lambda: projected_affinity(S[0, 0, 0], T), ["(4,)", "(N, C, H, W)"]),
        (lambda: unit_columns(S[0, 0]), ["(4, 4)", "(N, C, n)", "choose a layer"]),
        (lambda: feature_affinity(S, T, order=3), ["order", "3"]),
        (lambda: feature_affinity(S, T, form="rows"), ["form", "positions", "rows"]),
        (lambda: feature_affinity(S, T, form="channels"), ["form=channels", "3 and 5", "gram"]),
        (lambda: feature_affinity(S, S, form="channels", order=1), ["order=1", "positions"]),
        (lambda: feature_affinity(S, S, form="gram", order=1), ["order=1", "positions"]),
        (lambda: feature_affinity(S, S, reduction="sum"), ["reduction", "authors", "sum"]),
        (lambda: projected_affinity(S, S, reduction="sum"), ["reduction", "authors", "sum"]),
        (lambda: projected_affinity(S, S, order=0), ["order", "0"]),
        (lambda: projected_affinity(S, S, columns=0), ["columns", "0", "15"]),
        (lambda: projected_affinity(S, S, directions=torch.ones(4, 2)), ["(4, 2)", "n = 16"]),
    ],
)
def test_mistakes(call, words):
    with pytest.raises(SpecError) as caught:
        call()
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_second_derivative_is_refused_and_not_zero():
    x, y = torch.randn(2, 1, 3, 2, 2, generator=torch.Generator().manual_seed(0)).unbind()
    x.requires_grad_()
    with pytest.raises(SpecError, match="no second derivative"):
        torch.autograd.grad(feature_affinity(x, y), x, create_graph=True)


def test_overflow_is_no_plausible_number():
    x, y = torch.randn(2, 1, 3, 2, 2, generator=torch.Generator().manual_seed(0)).unbind()
    assert feature_affinity(1e20 * x, y).isnan()


@pytest.mark.parametrize("shape", [(0, 3, 2, 2), (1, 3, 0, 2)])
def test_empty_maps_are_refused(shape):
    with pytest.raises(SpecError, match="not empty"):
        feature_affinity(torch.zeros(shape), torch.zeros(shape))


@pytest.mark.parametrize(("own", "other", "side"), [(64, 128, 8), (16, 64, 8), (128, 256, 8)])
def test_unequal_channels_near_equal_affinities(own, other, side):
    generator = torch.Generator().manual_seed(0)
    s = torch.randn(2, own, side, side, generator=generator)
    mix = torch.linalg.qr(torch.randn(other, own, generator=generator))[0]
    t = torch.einsum("oc,nchw->nohw", mix, s)
    t = t + 1e-3 * torch.randn(t.shape, generator=generator)
    a, b = unit_columns(s).double(), unit_columns(t).double()
    expected = float((a.mT @ a - b.mT @ b).square().sum((1, 2)).mean() / side**4)
    assert float(feature_affinity(s, t)) == pytest.approx(expected, rel=1e-6)
