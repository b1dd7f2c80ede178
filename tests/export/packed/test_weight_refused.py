"""Packed codes and scales that are none of a weight's."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qat.errors import CheckpointError
from qat.export.packed.weight_codes import stored_codes, unpacked, weight_codes
from qat.nn.weight import WeightQuantizer


def normal(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def refused(data, scale, quantizer, match):
    with pytest.raises(CheckpointError, match=match) as error:
        unpacked(data, scale, torch.Size((2, 4)), quantizer)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("bits", "grid"), [(2, "ternary"), (3, "uniform"), (8, "uniform")])
def test_the_number_that_is_no_level_is_refused(bits, grid):
    quantizer = WeightQuantizer(bits, grid=grid)
    data = torch.zeros(bits, dtype=torch.uint8)  # every code is -2^(bits - 1)
    refused(data, torch.ones(()), quantizer, f"no level of the {grid} grid of {bits} bits")


@given(st.integers(2, 6), st.integers(0, 255))
def test_exponent_codes_end_where_the_levels_do(bits, number):
    quantizer = WeightQuantizer(bits, grid="power_of_two")
    code = int(stored_codes(bits)[number % 2**bits])
    positive = [level for level in quantizer.levels if level > 0]
    data = torch.tensor([number % 2**bits], dtype=torch.uint8)
    if abs(code) > len(positive):
        with pytest.raises(CheckpointError, match="no level of the power_of_two grid"):
            unpacked(data, torch.ones(()), torch.Size((1,)), quantizer)
    else:
        value = unpacked(data, torch.ones(()), torch.Size((1,)), quantizer).hard().item()
        assert value == (0 if code == 0 else code / abs(code) * positive[abs(code) - 1])


@pytest.mark.parametrize(
    "scale",
    [
        torch.tensor(torch.nan),
        torch.tensor(-torch.inf),
        torch.ones(1),
        torch.ones(2, 1),
        torch.ones((), dtype=torch.float64),
    ],
)
def test_a_scale_that_is_not_one_finite_float_is_refused(scale):
    quantizer = WeightQuantizer(4)
    data = weight_codes(normal(2, 4), quantizer).packed()
    refused(data, scale, quantizer, r"finite float32 of shape \(\), got")


@pytest.mark.parametrize(
    "scale", [torch.ones(()), torch.ones(2), torch.ones(1, 2), torch.tensor([[1.0], [torch.nan]])]
)
def test_a_scale_of_other_channels_is_refused(scale):
    quantizer = WeightQuantizer(4, "channel")
    data = weight_codes(normal(2, 4), quantizer).packed()
    refused(data, scale, quantizer, r"finite float32 of shape \(2, 1\), got")
