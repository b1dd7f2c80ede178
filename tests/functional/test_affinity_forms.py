"""The exact forms: equal to the n x n form in float64, bounded in memory, and traceable."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from qat.functional.affinity.feature_affinity import (
    feature_affinity,
    projected_affinity,
    unit_columns,
)
from qat.functional.affinity.forms import by_channels, by_gram, by_positions, cheapest_form
from support.products import mostly_slow


def columns(batch, channels, side, *, noise, teacher_channels=None):
    """Unit columns of a student and of a teacher that is close to it, or, for 0, of another one."""
    generator = torch.Generator().manual_seed(channels + side)
    s = torch.randn(batch, channels, side, side, generator=generator)
    t = torch.randn(batch, teacher_channels or channels, side, side, generator=generator)
    return unit_columns(s), unit_columns(s + noise * t if noise else t)


def matrix_form(student, teacher):
    """||A_s - A_t||_F^2 and its gradient from whole n x n matrices in float64."""
    s, t = student.double(), teacher.double()
    d = torch.einsum("nci,ncj->nij", s, s) - torch.einsum("nci,ncj->nij", t, t)
    return d.square().sum((1, 2)), 4 * torch.einsum("nci,nij->ncj", s, d)


@pytest.mark.parametrize("noise", [0, 1e-1, 1e-3, 1e-4])
@pytest.mark.parametrize(("channels", "side"), [(64, 16), (16, 20), (128, 6), (3, 24), (5, 1)])
@pytest.mark.parametrize("form", [by_positions, by_channels, by_gram])
def test_forms_agree_with_the_matrix_in_float64(form, channels, side, noise):
    s, t = columns(4, channels, side, noise=noise)
    expected, slope = matrix_form(s, t)
    values, gradient = form(s, t)
    assert gradient.dtype == torch.float32
    if side == 1:  # one position: its cosine with itself says nothing
        assert float(values.max()) < 1e-7
        return
    torch.testing.assert_close(values, expected, rtol=1e-6, atol=0)
    assert float((gradient - slope).norm() / slope.norm()) < 1e-6


@pytest.mark.parametrize("teacher_channels", [8, 100])
@pytest.mark.parametrize("form", [by_positions, by_gram])
def test_other_widths(form, teacher_channels):
    s, t = columns(3, 32, 9, noise=0, teacher_channels=teacher_channels)
    expected, slope = matrix_form(s, t)
    values, gradient = form(s, t)
    torch.testing.assert_close(values, expected, rtol=1e-6, atol=0)
    assert float((gradient - slope).norm() / slope.norm()) < 1e-6


def test_why_not_the_plain_expansion_in_float32():
    s, t = columns(4, 64, 16, noise=1e-3)
    square = lambda x, y: (x @ y.mT).square().sum((1, 2))  # noqa: E731
    plain = square(s, s) - 2 * square(s, t) + square(t, t)
    assert plain.dtype == torch.float32
    expected, _ = matrix_form(s, t)
    assert float(((plain - expected) / expected).abs().max()) > 1e-2


def test_rotated_channels_are_seen_as_equal():
    s, _ = columns(4, 64, 16, noise=0)
    rotation = torch.linalg.qr(torch.randn(64, 64, generator=torch.Generator().manual_seed(0)))[0]
    square = float((s.mT @ s).square().sum())
    for form, bound in ((by_positions, 1e-12), (by_gram, 1e-12), (by_channels, 1e-6)):
        values, _ = form(s, rotation @ s)
        assert 0 <= float(values.max()) < bound * square


def test_the_gradient_is_computed_only_when_it_is_wanted():
    s, t = columns(2, 4, 3, noise=0)
    for form in (by_positions, by_channels, by_gram):
        values, gradient = form(s, t, wants_gradient=False)
        assert gradient is None
        assert torch.equal(values, form(s, t)[0])


def test_auto_takes_the_cheaper_form():
    assert cheapest_form(4, 512, 512) == "positions"
    assert cheapest_form(3136, 16, 16) == "channels"
    assert cheapest_form(3136, 16, 24) == "gram"
    for c in (16, 64, 256):
        taken = [cheapest_form(n, c, c) for n in range(1, 5 * c)]
        change = taken.index("channels")
        assert c <= change <= 3 * c
        assert set(taken[change:]) == {"channels"}
    s, t = torch.randn(2, 2, 6, 6), torch.randn(2, 2, 6, 6)
    assert feature_affinity(s, t) == feature_affinity(s, t, form="channels")
    assert feature_affinity(s, t, order=1) == feature_affinity(s, t, form="positions", order=1)


class Largest(TorchDispatchMode):
    """The largest number of entries of any tensor that an operation returns."""

    def __init__(self):
        super().__init__()
        self.entries = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.entries = max(self.entries, result.numel())
        return result


@pytest.mark.parametrize("order", [1, 2])
def test_positions_hold_a_tile_and_keep_a_map(order):
    s = torch.randn(3, 2, 40, 50, requires_grad=True)
    t = torch.randn(3, 2, 40, 50)
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.numel()
        return tensor

    with Largest() as largest, torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        feature_affinity(s, t, order=order, form="positions")
    assert 2000 <= largest.entries <= 1 << 18  # one matrix has 4 million entries
    assert sum(kept.values()) <= 6 * s.numel()


@pytest.mark.parametrize("order", [1, 2])
def test_tiles_make_no_difference(order, monkeypatch):
    s, t = columns(5, 6, 7, noise=0)
    values, gradient = by_positions(s.double(), t.double(), order=order)
    for tile in (1, 60, 49 * 49, 2 * 49 * 49 + 5):
        monkeypatch.setattr("qat.functional.affinity.loss._TILE", {"cpu": tile})
        other, slope = by_positions(s.double(), t.double(), order=order)
        torch.testing.assert_close(other, values, rtol=1e-12, atol=0)
        torch.testing.assert_close(slope, gradient, rtol=1e-9, atol=1e-12)


COMPILED = [
    *(lambda s, t, o=o, f=f: feature_affinity(s, t, order=o, form=f)
      for o, f in [(1, "positions"), (2, "positions"), (2, "channels"), (2, "gram")]),
    lambda s, t: projected_affinity(s, t, directions=torch.ones(25, 3, dtype=s.dtype)),
]  # fmt: skip


@pytest.mark.parametrize("loss", mostly_slow(COMPILED, day=(1, 4)))
def test_one_graph(loss):
    generator = torch.Generator().manual_seed(0)
    s, t = (torch.randn(2, 4, 5, 5, generator=generator) for _ in range(2))
    gradients = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        student = s.clone().requires_grad_()
        function(student, t).backward()
        gradients.append(student.grad)
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-9)
