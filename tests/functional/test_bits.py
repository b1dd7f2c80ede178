"""Packed codes against their definition, written as one long integer."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qat.errors import CheckpointError
from qat.functional.bits import (
    field_width,
    pack_bits,
    pack_trits,
    packed_size,
    unpack_bits,
    unpack_trits,
)

BITS = st.integers(1, 8)


@st.composite
def codes(draw, largest=None):
    bits = draw(BITS)
    top = 2**bits - 1 if largest is None else largest
    return bits, draw(st.lists(st.integers(0, top), max_size=70))


def stream(values, bits):
    """The definition: code i takes the bits from i * bits on of one little-endian integer."""
    whole = sum(code << (i * bits) for i, code in enumerate(values))
    return whole.to_bytes(-(-len(values) * bits // 8), "little")


def trit_bytes(values):
    groups = [values[i : i + 5] for i in range(0, len(values), 5)]
    return bytes(sum(trit * 3**i for i, trit in enumerate(group)) for group in groups)


@given(codes(), st.sampled_from([torch.uint8, torch.int16, torch.int64]))
def test_bits_are_the_stream_and_come_back(drawn, dtype):
    bits, values = drawn
    packed = pack_bits(torch.tensor(values, dtype=dtype), bits)
    assert packed.dtype == torch.uint8
    assert bytes(packed.tolist()) == stream(values, bits)
    assert len(packed) == packed_size(len(values), bits)
    back = unpack_bits(packed, bits, len(values))
    assert back.dtype == torch.uint8
    assert back.tolist() == values


@given(codes(largest=2))
def test_trits_are_base_three_and_come_back(drawn):
    _, values = drawn
    packed = pack_trits(torch.tensor(values, dtype=torch.int8))
    assert packed.dtype == torch.uint8
    assert bytes(packed.tolist()) == trit_bytes(values)
    assert unpack_trits(packed, len(values)).tolist() == values


@given(BITS, st.integers(0, 70), st.randoms(use_true_random=False))
def test_every_row_of_bytes_without_padding_bits_is_some_codes(bits, count, random):
    count -= count % 8  # eight codes fill whole bytes
    data = torch.tensor([random.randrange(256) for _ in range(count * bits // 8)])
    unpacked = unpack_bits(data.to(torch.uint8), bits, count)
    assert pack_bits(unpacked, bits).tolist() == data.tolist()


def test_order_of_many_dimensions_is_row_major():
    values = torch.arange(24).view(2, 3, 4) % 8
    assert torch.equal(pack_bits(values, 3), pack_bits(values.flatten(), 3))
    assert torch.equal(pack_bits(values.mT, 3), pack_bits(values.mT.contiguous().flatten(), 3))
    trits = values % 3
    assert torch.equal(pack_trits(trits.mT), pack_trits(trits.mT.contiguous().flatten()))


@pytest.mark.parametrize(("bits", "width"), [(1, 1), (2, 2), (3, 1), (4, 4), (6, 2), (8, 8)])
def test_fields_divide_the_code_and_the_byte(bits, width):
    assert field_width(bits) == width
    assert bits % width == 0
    assert 8 % width == 0


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("count", range(1, 9))
def test_each_bit_behind_the_last_code_is_refused(bits, count):
    packed = pack_bits(torch.full((count,), 2**bits - 1), bits)
    for bit in range(count * bits, 8 * len(packed)):
        damaged = packed.clone()
        damaged[bit // 8] |= 1 << bit % 8
        with pytest.raises(CheckpointError, match=f"behind the last of {count} packed codes"):
            unpack_bits(damaged, bits, count)


@pytest.mark.parametrize("count", range(1, 6))
def test_a_byte_is_five_trits_with_zeros_behind_the_last_or_refused(count):
    for byte in range(256):
        data = torch.tensor([byte], dtype=torch.uint8)
        if byte < 3**count:
            assert pack_trits(unpack_trits(data, count)).item() == byte
        else:
            with pytest.raises(CheckpointError, match=f"a byte of {count} packed trits"):
                unpack_trits(data, count)


@given(BITS, st.integers(0, 40), st.sampled_from([-1, 1, 5]))
def test_another_number_of_bytes_is_refused(bits, count, more):
    size = packed_size(count, bits)
    wrong = torch.zeros(abs(size + more), dtype=torch.uint8)
    with pytest.raises(CheckpointError, match=rf"{count} codes of {bits} bits take uint8"):
        unpack_bits(wrong if size + more >= 0 else wrong[None], bits, count)
    trit_size = -(-count // 5)
    wrong = torch.zeros(abs(trit_size + more), dtype=torch.uint8)
    with pytest.raises(CheckpointError, match=f"{count} trits take uint8"):
        unpack_trits(wrong if trit_size + more >= 0 else wrong[None], count)


@pytest.mark.parametrize(
    "data", [torch.zeros(2), torch.zeros(2, dtype=torch.int8), torch.zeros(1, 2).byte()]
)
def test_another_type_or_shape_is_refused(data):
    with pytest.raises(CheckpointError, match=r"take uint8 of shape \(2,\), got"):
        unpack_bits(data, 4, 4)
    with pytest.raises(CheckpointError, match=r"take uint8 of shape \(2,\), got"):
        unpack_trits(data, 10)


def test_no_codes_are_no_bytes():
    for bits in range(1, 9):
        assert pack_bits(torch.empty(0, dtype=torch.uint8), bits).shape == (0,)
        assert unpack_bits(torch.empty(0, dtype=torch.uint8), bits, 0).shape == (0,)
    assert pack_trits(torch.empty(0, dtype=torch.int8)).shape == (0,)
    assert unpack_trits(torch.empty(0, dtype=torch.uint8), 0).shape == (0,)
