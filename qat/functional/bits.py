"""Bit packing: codes of a few bits in a row of bytes, and back."""

import torch
from torch import Tensor

from qat.errors import CheckpointError

_TRITS = 5  # 3^5 = 243 values fit into a byte
_POWERS = (1, 3, 9, 27, 81)


def packed_size(count: int, bits: int) -> int:
    """Bytes that `count` codes of `bits` bits take."""
    return (count * bits + 7) // 8


def field_width(bits: int) -> int:
    """Width of the fields that `bits`-bit codes are made of: their largest divisor in 1, 2, 4, 8.

    No field crosses the end of a byte, so a code is read by shifts of single bytes.
    """
    return bits & -bits


def pack_bits(codes: Tensor, bits: int) -> Tensor:
    """Codes as one little-endian stream of bits: code i takes bits i * bits .. (i+1) * bits - 1.

    Bit j of the stream is bit j % 8 of byte j // 8; the bits behind the last code are 0.

    Args:
        codes: unsigned codes 0 .. 2^bits - 1, any shape, any integer type; read in row-major order.
        bits: 1 .. 8.

    Returns:
        uint8 tensor (ceil(count * bits / 8),).

    >>> pack_bits(torch.tensor([1, 0, 1, 1, 0, 0, 0, 0, 1]), 1).tolist()
    [13, 1]
    """
    width = field_width(bits)
    fields = _fields(codes.flatten().to(torch.uint8), bits, width)
    size, each = packed_size(codes.numel(), bits), 8 // width
    padded = fields.new_zeros(size * each)
    padded[: len(fields)] = fields
    return (padded.view(size, each) << _shifts(width)).sum(dim=1, dtype=torch.uint8)


def unpack_bits(data: Tensor, bits: int, count: int) -> Tensor:
    """The `count` codes that `pack_bits` has packed.

    Args:
        data: uint8 tensor (ceil(count * bits / 8),).
        bits: 1 .. 8.
        count: number of codes, >= 0.

    Returns:
        uint8 tensor (count,).

    Raises:
        CheckpointError: another number of bytes, or bits set behind the last code.
    """
    _check_size(data, packed_size(count, bits), f"{count} codes of {bits} bits")
    width = field_width(bits)
    each, parts = 8 // width, bits // width
    fields = ((data[:, None] >> _shifts(width)) & (2**width - 1)).flatten()
    used = count * parts
    if bool(fields[used:].any()):
        raise CheckpointError(f"bits are set behind the last of {count} packed codes")
    whole: Tensor = fields[:used].view(count, parts) << (width * torch.arange(parts)).to(
        torch.uint8
    )
    assert each * len(data) >= used  # by the size above
    return whole.sum(dim=1, dtype=torch.uint8)


def pack_trits(codes: Tensor) -> Tensor:
    """Codes 0, 1, 2 five to a byte, sum of code_i 3^i: 1.6 bits each; the last one filled with 0.

    Args:
        codes: any shape, any integer type; read in row-major order.

    Returns:
        uint8 tensor (ceil(count / 5),).

    >>> pack_trits(torch.tensor([2, 1, 0, 0, 0, 1])).tolist()
    [5, 1]
    """
    size = (codes.numel() + _TRITS - 1) // _TRITS
    padded = codes.new_zeros(size * _TRITS, dtype=torch.int32)
    padded[: codes.numel()] = codes.flatten()
    return (padded.view(size, _TRITS) * torch.tensor(_POWERS)).sum(dim=1).to(torch.uint8)


def unpack_trits(data: Tensor, count: int) -> Tensor:
    """The `count` codes that `pack_trits` has packed, uint8 (count,).

    Raises:
        CheckpointError: another number of bytes, a byte above 242, or trits behind the last code.
    """
    size = (count + _TRITS - 1) // _TRITS
    _check_size(data, size, f"{count} trits")
    trits: Tensor = (data.int()[:, None] // torch.tensor(_POWERS)) % 3
    if bool((data > 3**_TRITS - 1).any()) or bool(trits.flatten()[count:].any()):
        raise CheckpointError(f"a byte of {count} packed trits is none of five trits")
    codes: Tensor = trits.flatten()[:count].to(torch.uint8)
    return codes


def _fields(codes: Tensor, bits: int, width: int) -> Tensor:
    """Each code as bits // width fields, the lowest first."""
    if width == bits:
        return codes
    shifts = (width * torch.arange(bits // width)).to(torch.uint8)
    fields: Tensor = (codes[:, None] >> shifts) & (2**width - 1)
    return fields.flatten()


def _shifts(width: int) -> Tensor:
    return torch.arange(0, 8, width, dtype=torch.uint8)


def _check_size(data: Tensor, size: int, what: str) -> None:
    if data.dtype != torch.uint8 or data.shape != (size,):
        raise CheckpointError(
            f"{what} take uint8 of shape ({size},), got {data.dtype} of shape {tuple(data.shape)}"
        )
