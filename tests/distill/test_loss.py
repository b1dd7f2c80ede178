import dataclasses
from typing import get_args

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from qat.distill.loss import (
    COMPARISONS,
    FeatureAffinityLoss,
    MapLoss,
    ProjectedAffinityLoss,
    channel_adapters,
    resized,
)
from qat.errors import SpecError
from qat.functional.affinity.feature_affinity import feature_affinity
from qat.functional.distillation import attention_transfer, hint
from qat.names import FeatureLossName
from qat.spec.distill import FeatureSpec


def maps(seed, *shapes):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, *shape, dtype=torch.float64, generator=generator) for shape in shapes]


SHAPES = [(3, 4, 4), (5, 2, 2)]


@pytest.mark.parametrize("name", COMPARISONS)
def test_every_loss_is_zero_at_equality_and_reaches_the_student_only(name):
    loss = COMPARISONS[name].make()
    assert float(loss(maps(0, *SHAPES), maps(0, *SHAPES))) == pytest.approx(0, abs=1e-12)
    student = [m.requires_grad_() for m in maps(0, *SHAPES)]
    teacher = [m.requires_grad_() for m in maps(1, *SHAPES)]
    value = loss(student, teacher)
    assert value.shape == ()
    value.backward()
    assert all(m.grad.abs().sum() > 0 for m in student)
    assert all(m.grad is None for m in teacher)


def test_the_loss_is_the_sum_over_layers():
    student, teacher = maps(0, *SHAPES), maps(1, *SHAPES)
    for function in (hint, attention_transfer):
        loss = MapLoss(function)
        expected = sum(function(s, t) for s, t in zip(student, teacher, strict=True))
        torch.testing.assert_close(loss(student, teacher), expected)
    for order in (1, 2):
        pairs = zip(student, teacher, strict=True)
        expected = sum(feature_affinity(s, t, order=order) for s, t in pairs)
        torch.testing.assert_close(FeatureAffinityLoss(order=order)(student, teacher), expected)


def test_the_teacher_is_resized_with_aligned_corners():
    (student,), (teacher,) = maps(0, (3, 5, 5)), maps(1, (3, 3, 3))
    expected = torch.empty(2, 3, 5, 5, dtype=torch.float64)
    for i in range(5):
        for j in range(5):
            # corner 0 on corner 0 and corner 4 on corner 2: half a pixel each step
            y, x = i / 2, j / 2
            y0, x0 = min(int(y), 1), min(int(x), 1)
            a, b = y - y0, x - x0
            top = (1 - b) * teacher[:, :, y0, x0] + b * teacher[:, :, y0, x0 + 1]
            low = (1 - b) * teacher[:, :, y0 + 1, x0] + b * teacher[:, :, y0 + 1, x0 + 1]
            expected[:, :, i, j] = (1 - a) * top + a * low
    torch.testing.assert_close(resized(teacher, student), expected)
    torch.testing.assert_close(MapLoss(hint)([student], [teacher]), F.mse_loss(student, expected))


def test_fresh_directions_follow_the_step_and_touch_no_global_generator():
    student, teacher = maps(0, *SHAPES), maps(1, *SHAPES)
    before = torch.get_rng_state()
    loss = ProjectedAffinityLoss(columns=4, seed=3)
    first, second = loss(student, teacher, step=1), loss(student, teacher, step=2)
    assert torch.equal(torch.get_rng_state(), before)
    assert first != second
    assert torch.equal(loss(student, teacher, step=1), first)
    other = ProjectedAffinityLoss(columns=4, seed=4)
    assert not torch.equal(other(student, teacher, step=1), first)
    fixed = ProjectedAffinityLoss(columns=4, seed=3, directions="fixed")
    assert torch.equal(fixed(student, teacher, step=1), fixed(student, teacher, step=2))


def test_layers_draw_directions_of_their_own():
    student, teacher = maps(0, (3, 4, 4)) * 2, maps(1, (3, 4, 4)) * 2
    loss = ProjectedAffinityLoss(columns=2)
    twice = loss(student, teacher)
    once = loss(student[:1], teacher[:1])
    assert not torch.allclose(twice, 2 * once)


@pytest.mark.parametrize("kind", ["conv", "conv_relu"])
def test_adapters_give_the_teachers_channels_and_learn(kind):
    student, teacher = maps(0, (3, 4, 4), (5, 2, 2)), maps(1, (6, 4, 4), (7, 2, 2))
    loss = MapLoss(hint, adapters=channel_adapters(kind, [3, 5], [6, 7])).double()
    value = loss(student, teacher)
    value.backward()
    assert len(list(loss.parameters())) == 4
    assert all(p.grad.abs().sum() > 0 for p in loss.parameters())
    by_hand = 0
    for place, (s, t) in enumerate(zip(student, teacher, strict=True)):
        conv = loss.adapters[place] if kind == "conv" else loss.adapters[place][0]
        out = torch.einsum("oi,nihw->nohw", conv.weight[:, :, 0, 0], s) + conv.bias[:, None, None]
        by_hand = by_hand + F.mse_loss(out.relu() if kind == "conv_relu" else out, t)
    torch.testing.assert_close(value, by_hand)


def test_no_adapters_are_no_modules():
    assert channel_adapters("none", [3], [4]) == []
    assert not list(FeatureAffinityLoss().parameters())


def test_maps_and_adapters_must_pair_up():
    student, teacher = maps(0, *SHAPES), maps(1, *SHAPES)
    with pytest.raises(SpecError, match="2 student maps, 1 teacher maps"):
        MapLoss(hint)(student, teacher[:1])
    with pytest.raises(SpecError, match="and 1 adapters"):
        MapLoss(hint, adapters=[nn.Identity()])(student, teacher)


def test_the_table_holds_the_names_of_the_options():
    assert {*COMPARISONS, "none"} == set(get_args(FeatureLossName))
    fields = {field.name for field in dataclasses.fields(FeatureSpec)}
    for row in COMPARISONS.values():
        assert set(row.options) <= fields | {"seed"}
