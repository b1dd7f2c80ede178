import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qat.errors import SpecError
from qat.functional.distillation import (
    attention_transfer,
    hint,
    logit_kl,
    logit_mse,
    similarity_preserving,
)

MAPS = [hint, attention_transfer, similarity_preserving]


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_logit_mse_by_hand():
    s, t = torch.tensor([[1.0, 2.0], [0.0, 4.0]]), torch.tensor([[1.0, 0.0], [3.0, 4.0]])
    assert float(logit_mse(s, t)) == (0 + 4 + 9 + 0) / 4


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_logit_kl_by_loops(temperature):
    s, t = normal(3, 5), normal(3, 5, seed=1)
    total = 0.0
    for own, other in zip(s.tolist(), t.tolist(), strict=True):
        p = [math.exp(x / temperature) for x in other]
        q = [math.exp(x / temperature) for x in own]
        p, q = [x / sum(p) for x in p], [x / sum(q) for x in q]
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    expected = temperature**2 * total / 3
    assert float(logit_kl(s, t, temperature=temperature)) == pytest.approx(expected, rel=1e-12)


def test_logit_kl_is_half_a_squared_distance_at_high_temperature():
    s, t = normal(4, 6).requires_grad_(), normal(4, 6, seed=1)
    logit_kl(s, t, temperature=1e4).backward()
    difference = (s - s.mean(1, keepdim=True)) - (t - t.mean(1, keepdim=True))
    torch.testing.assert_close(s.grad, difference.detach() / (4 * 6), rtol=1e-3, atol=1e-6)


def test_attention_transfer_by_loops():
    s, t = normal(2, 3, 2, 2), normal(2, 5, 2, 2, seed=1)
    total = 0.0
    for image in range(2):
        rows = []
        for maps in (s[image], t[image]):
            energy = [float((maps[:, i, j] ** 2).mean()) for i in range(2) for j in range(2)]
            norm = math.sqrt(sum(e * e for e in energy))
            rows.append([e / norm for e in energy])
        total += sum((a - b) ** 2 for a, b in zip(*rows, strict=True))
    assert float(attention_transfer(s, t)) == pytest.approx(total / (2 * 4), rel=1e-12)


def test_similarity_preserving_by_loops():
    s, t = normal(3, 2, 2, 2), normal(3, 4, 1, 1, seed=1)

    def rows(maps):
        flat = maps.flatten(1).tolist()
        products = [[sum(a * b for a, b in zip(x, y, strict=True)) for y in flat] for x in flat]
        return [[p / math.sqrt(sum(q * q for q in row)) for p in row] for row in products]

    difference = torch.tensor(rows(s), dtype=torch.float64) - torch.tensor(rows(t))
    expected = float(difference.square().sum()) / 9
    assert float(similarity_preserving(s, t)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("loss", MAPS)
def test_map_losses_have_right_gradients_and_a_constant_teacher(loss):
    s, t = normal(3, 2, 2, 3).requires_grad_(), normal(3, 2, 2, 3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(x, t), (s,))
    loss(s, t).backward()
    assert t.grad is None


@pytest.mark.parametrize("loss", [logit_mse, logit_kl])
def test_logit_losses_have_right_gradients_and_a_constant_teacher(loss):
    s, t = normal(3, 4).requires_grad_(), normal(3, 4, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(x, t), (s,))
    loss(s, t).backward()
    assert t.grad is None


@given(st.integers(0, 1000))
def test_losses_are_zero_at_equality_and_positive_elsewhere(seed):
    maps, logits = normal(3, 4, 2, 2, seed=seed), normal(3, 4, seed=seed)
    for loss in MAPS:
        assert float(loss(maps, maps)) == 0
        assert float(loss(maps, maps.flip(0))) > 0
    for loss in (logit_mse, logit_kl):
        assert abs(float(loss(logits, logits))) < 1e-15
        assert float(loss(logits, logits.flip(0))) > 0


@given(st.floats(1e-3, 1e3), st.integers(0, 100))
def test_attention_transfer_ignores_a_positive_factor(factor, seed):
    s, t = normal(2, 3, 3, 3, seed=seed), normal(2, 5, 3, 3, seed=seed + 1)
    torch.testing.assert_close(attention_transfer(factor * s, t), attention_transfer(s, t))


def test_similarity_preserving_ignores_a_rotation_of_the_features():
    s, t = normal(4, 3, 2, 2), normal(4, 5, 3, 3, seed=1)
    rotation = torch.linalg.qr(normal(3, 3, seed=2))[0]
    rotated = torch.einsum("ij,njhw->nihw", rotation, s)
    torch.testing.assert_close(similarity_preserving(rotated, t), similarity_preserving(s, t))


def test_half_precision_maps_do_not_overflow():
    maps = torch.full((2, 4, 2, 2), 500.0, dtype=torch.float16)
    for loss in MAPS:
        assert float(loss(maps, maps)) == 0


@pytest.mark.parametrize("loss", [logit_mse, logit_kl])
def test_other_classes_are_refused(loss):
    with pytest.raises(SpecError, match=r"\(2, 3\) and \(2, 4\)"):
        loss(torch.zeros(2, 3), torch.zeros(2, 4))


def test_a_hint_of_other_channels_is_refused_with_the_cure():
    with pytest.raises(SpecError, match=r"distill\.features\.adapter=conv"):
        hint(torch.zeros(2, 3, 4, 4), torch.zeros(2, 5, 4, 4))
