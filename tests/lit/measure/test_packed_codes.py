"""Codes in a checkpoint: the same codes back, in few bits."""

import pytest
import torch

from qat.errors import CheckpointError
from qat.lit.measure.packed_codes import _any_levels, packed_codes, unpacked_codes
from qat.lit.measure.records import Records


@pytest.mark.parametrize(
    ("levels", "size"),
    [([-1, 1], 13), ([-1, 0, 1], 25), ([5], 13), (range(-8, 8), 50), (range(-128, 128), 100)],
)
def test_codes_come_back_from_few_bits(levels, size):
    levels = torch.tensor(levels, dtype=torch.int8)
    chosen = torch.randint(len(levels), (4, 25), generator=torch.Generator().manual_seed(0))
    codes = levels[chosen]
    saved = packed_codes(codes)
    assert torch.equal(unpacked_codes(saved), codes)
    assert unpacked_codes(saved).dtype == torch.int8
    assert saved["places"].numel() <= size  # bytes of 100 codes


@pytest.mark.parametrize("count", [1, 7, 8, 9, 64])
@pytest.mark.parametrize("levels", [(-1, 1), (0, 127), (-128, 127)])
def test_two_levels_are_packed_as_any(levels, count):
    generator = torch.Generator().manual_seed(count)
    codes = torch.tensor(levels, dtype=torch.int8)[torch.arange(count) % 2]
    codes = codes[torch.randperm(count, generator=generator)]
    saved, (values, places) = packed_codes(codes), _any_levels(codes)
    assert torch.equal(saved["levels"], values)
    assert torch.equal(saved["places"], places)
    assert saved["levels"].dtype == torch.int8
    assert torch.equal(unpacked_codes(saved), codes)


def test_codes_of_earlier_checkpoints_are_read():
    codes = torch.tensor([[1, -1]], dtype=torch.int8)
    assert torch.equal(unpacked_codes(codes), codes)


@pytest.mark.parametrize(
    "change",
    [
        {"levels": torch.tensor([1], dtype=torch.int8)},
        {"levels": 5},
        {"places": torch.zeros(0, dtype=torch.uint8)},
        {"shape": [10**6, 10**6]},
        {"shape": "x"},
    ],
    ids=str,
)
def test_codes_of_a_checkpoint_that_are_none_are_refused_when_it_is_read(change):
    good = packed_codes(torch.tensor([-1, 1, 0, 1], dtype=torch.int8))
    state = {"has_begun": True, "positions": {}, "codes": {"conv": good | change}}
    with pytest.raises(CheckpointError):
        Records().load_state_dict(state)
