"""Functions that are put in other forms for PyTorch's exporter compute what PyTorch's own do."""

import itertools

import pytest
import torch
from torch.nn import functional as F

from qat.export.onnx.translatable import (
    Translatable,
    adaptive_avg_pool2d,
    einsum,
    fold,
    scaled_dot_product_attention,
)

torch.manual_seed(0)


@pytest.mark.parametrize(
    ("equation", "left", "right"),
    [
        ("byhwc,hkc->byhwk", (2, 3, 4, 5, 6), (4, 7, 6)),
        ("byhwc,wkc->byhwk", (2, 3, 4, 5, 6), (5, 7, 6)),
        ("B G H I D, B G H J D -> B G H I J", (2, 3, 4, 5, 6), (2, 3, 4, 7, 6)),
        ("ij,jk->ki", (2, 3), (3, 4)),
        ("i,j->ij", (2,), (3,)),
        ("ij,ij->i", (2, 3), (2, 3)),
        ("nchw,ndhw->cnd", (2, 3, 4, 5), (2, 6, 4, 5)),
        # no products of matrices: left to PyTorch
        ("ij,jk->i", (2, 3), (3, 4)),
        ("ii,ij->ij", (3, 3), (3, 4)),
        ("ij,kj->ik", (2, 1), (4, 3)),
        ("...ij,...jk->...ik", (2, 3, 4), (2, 4, 5)),
        ("ij,jk", (2, 3), (3, 4)),
    ],
)
def test_einsum_is_pytorchs(equation, left, right):
    one, two = torch.randn(left, dtype=torch.double), torch.randn(right, dtype=torch.double)
    torch.testing.assert_close(einsum(equation, one, two), torch.einsum(equation, one, two))


def test_einsum_of_other_arguments_is_pytorchs():
    one, two = torch.arange(6.0).view(2, 3), torch.arange(12.0).view(3, 4)
    assert torch.equal(einsum(one, [0, 1], two, [1, 2]), one @ two)
    assert torch.equal(einsum("ij->ji", one), one.T)
    assert torch.equal(einsum("ij,jk->ik", [one, two]), one @ two)


def folds():
    for kernel, dilation, padding, stride in itertools.product(
        (1, 2, 3, (2, 3)), (1, 2, (1, 2)), (0, 1, (1, 0)), (1, 2, 3, (2, 1))
    ):
        for size in ((7, 8), (9, 5)):
            yield size, kernel, dilation, padding, stride


def test_folds_are_pytorchs():
    checked = 0
    for size, *rest in folds():
        blocks = F.unfold(torch.randn(2, 3, *size, dtype=torch.double), *rest)
        for given in (blocks, blocks[0]):
            torch.testing.assert_close(fold(given, size, *rest), F.fold(given, size, *rest))
            checked += 1
    assert checked == 2 * 2 * 4 * 3 * 3 * 4


@pytest.mark.parametrize("lead", [(), (2,), (2, 3), (2, 3, 4)], ids=str)
@pytest.mark.parametrize("mask", ["none", "full", "shared", "boolean", "causal"])
def test_attention_of_any_axes_is_pytorchs(lead, mask):
    query, key, value = (
        torch.randn(*lead, *last, dtype=torch.double) for last in ((5, 8), (6, 8), (6, 7))
    )
    more = {
        "none": {},
        "full": {"attn_mask": torch.randn(*lead, 5, 6, dtype=torch.double)},
        "shared": {"attn_mask": torch.randn(5, 6, dtype=torch.double)},
        "boolean": {"attn_mask": torch.ones(5, 6).tril().bool()},
        "causal": {"is_causal": True, "scale": 0.3},
    }[mask]
    torch.testing.assert_close(
        scaled_dot_product_attention(query, key, value, **more),
        F.scaled_dot_product_attention(query, key, value, **more),
    )


def test_attention_of_fewer_keys_heads_is_left_to_pytorch():
    query, key = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 6, 8)
    torch.testing.assert_close(
        scaled_dot_product_attention(query, key, key, enable_gqa=True),
        F.scaled_dot_product_attention(query, key, key, enable_gqa=True),
    )


def test_means_are_pytorchs():
    image = torch.randn(2, 3, 6, 4)
    for size in (1, (1, 1), (3, 2), (None, 1)):
        torch.testing.assert_close(
            adaptive_avg_pool2d(image, size), F.adaptive_avg_pool2d(image, size)
        )


def test_the_mode_sees_each_form_of_a_call():
    from torch.nn.functional import fold as by_name

    blocks = F.unfold(torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last), 2)
    with Translatable():
        one, two = by_name(blocks, 4, 2), torch.nn.Fold(4, 2)(blocks)
        query = torch.randn(3, 4, 5)
        answer = F.scaled_dot_product_attention(key=query, query=query, value=query)
    assert torch.equal(one, two)
    assert torch.equal(one, fold(blocks, 4, 2))
    torch.testing.assert_close(answer, F.scaled_dot_product_attention(query, query, query))


def test_answers_lie_in_memory_as_pytorchs_own():
    """So that what can be viewed stays so."""
    blocks = torch.randn(2, 9, 12).transpose(1, 2)
    assert fold(blocks, 4, 2).stride() == F.fold(blocks, 4, 2).stride()
    one, two = torch.randn(2, 3), torch.randn(3, 4)
    assert einsum("ij,jk->ki", one, two).is_contiguous()
