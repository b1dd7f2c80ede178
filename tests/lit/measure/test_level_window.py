"""Flips, oscillation and occupancy by hand; which weights are followed, with which codes."""

import pytest
import torch

from qat.lit.measure.flips import MOST_WEIGHTS, SAMPLE, occupancy, oscillation, sampled_codes
from qat.nn.binary_parametrization import BiperWeight, ResteWeight
from qat.nn.parametrization import DorefaWeight
from qat.nn.weight import WeightQuantizer

# one weight a column: still, drifting, flipping to and fro, there and back once, late
CODES = torch.tensor(
    [
        [1, 0, -1, 0, 2],
        [1, 1, 1, 1, 2],
        [1, 2, -1, 1, 2],
        [1, 3, 1, 0, 2],
        [1, 4, -1, 0, 3],
    ],
    dtype=torch.int8,
)


def test_oscillation_counts_flips_against_the_last_one():
    # the third weight flips back three times, the fourth once; 5 weights, 4 steps
    assert oscillation(CODES) == 4 / 20
    assert oscillation(CODES[:2]) == 0
    assert oscillation(CODES[:, :2]) == 0
    far = torch.tensor([[-128], [127], [-128]], dtype=torch.int8)  # the difference needs more bits
    assert oscillation(far) == 1 / 2


def test_occupancy_is_the_share_of_the_most_visited_level():
    assert occupancy(CODES).tolist() == pytest.approx([1, 0.2, 0.6, 0.6, 0.8])


def test_codes_are_those_of_the_whole_tensor():
    generator = torch.Generator().manual_seed(0)
    large, small = (torch.randn(n, generator=generator) for n in (3 * SAMPLE + 1, 50))
    quantizer = WeightQuantizer(4)
    codes = sampled_codes([(large, quantizer), (small, quantizer)])
    expected = [quantizer.encode(w)[0][::4] for w in (small, large)]
    assert torch.equal(codes, torch.cat(expected))
    assert torch.equal(sampled_codes([(small, quantizer)]), quantizer.encode(small)[0])


@pytest.mark.parametrize(
    "quantizer",
    [WeightQuantizer(1), ResteWeight(1), DorefaWeight(1), BiperWeight(1)],
    ids=lambda quantizer: type(quantizer).__name__,
)
def test_signs_are_followed_in_tensors_of_any_size(quantizer):
    w = torch.randn(64, MOST_WEIGHTS // 32, generator=torch.Generator().manual_seed(1))
    codes = sampled_codes([(w, quantizer)])
    assert torch.equal(codes, quantizer.encode(w)[0].flatten()[:: w.numel() // SAMPLE])
    assert len(codes) == SAMPLE


def test_tensors_beyond_the_budget_are_left_out():
    quantizer, channels = WeightQuantizer(4), WeightQuantizer(1, "channel")
    huge, small = torch.ones(2, MOST_WEIGHTS), torch.ones(2, 25)
    assert len(sampled_codes([(huge, channels), (small, quantizer)])) == 50
    assert len(sampled_codes([(huge, quantizer)])) == SAMPLE  # one at least
