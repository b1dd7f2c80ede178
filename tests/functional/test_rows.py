"""Pieces of matrices, and sums over rows that are put together from them."""

import pytest
import torch

from qat.functional import rows
from qat.functional.rows import PIECE, by_piece, pieces, row_peaks, row_sums

SHAPES = [(1, 1), (3, 5), (2000, 100), (3, PIECE), (1, PIECE + 1), (2, 2 * PIECE + 7), (PIECE, 2)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_pieces_are_the_matrix(shape):
    numbers = torch.arange(shape[0] * shape[1]).view(shape)
    column = torch.arange(shape[0]).unsqueeze(1)
    seen = []
    for part, label in pieces(numbers, column):
        assert part.numel() <= PIECE
        assert part.shape[0] == label.shape[0]
        assert torch.equal(part[:, :1] // shape[1], label)
        seen.append(part.flatten())
    assert torch.equal(torch.cat(seen), numbers.flatten())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sums_and_peaks_of_rows(shape):
    w = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    parts = [part.sum(dim=1, keepdim=True) for (part,) in pieces(w)]
    exact = w.double().sum(dim=1, keepdim=True)
    bound = 1e-6 * w.double().abs().sum(dim=1, keepdim=True)
    assert ((row_sums(parts, w).double() - exact).abs() <= bound).all()
    if shape[1] <= PIECE:
        assert torch.equal(row_sums(parts, w), w.sum(dim=1, keepdim=True))
    assert torch.equal(row_peaks(w), w.abs().amax(dim=1, keepdim=True))
    mean, peak = rows.means_and_peaks(w)
    assert torch.equal(mean, rows.means(w))
    assert torch.equal(peak, row_peaks(w))


def test_only_several_pieces_of_whole_rows_are_fitted_one_by_one():
    assert not by_piece(torch.empty(3, 5))
    assert not by_piece(torch.empty(2, PIECE + 1))
    assert by_piece(torch.empty(2, PIECE))
    assert not any(by_piece(part) for (part,) in pieces(torch.empty(2000, 100)))
    assert not by_piece(torch.empty(2, PIECE, device="meta"))
