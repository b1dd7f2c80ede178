"""Weight codes and scale, from latent or from hard values."""

from dataclasses import dataclass

import torch
from torch import Tensor

from qat.errors import CheckpointError
from qat.functional.bits import pack_bits, pack_trits, unpack_bits, unpack_trits
from qat.nn.parametrization import WeightParametrization
from qat.nn.projected_weight import ProjectedWeight
from qat.nn.weight import WeightQuantizer

_FITS = 1e-5  # relative distance up to which a value counts as a level times the scale


@dataclass(frozen=True, slots=True)
class WeightCodes:
    """A weight on its grid: value = level(code) * scale.

    Attributes:
        codes: int8, of the weight's shape.
        scale: float32 of shape (), or (O, 1, ..., 1) for one scale per output channel.
        quantizer: what says which level a code is.
    """

    codes: Tensor
    scale: Tensor
    quantizer: WeightQuantizer | WeightParametrization

    @property
    def bits(self) -> int:
        """Bits of a code."""
        return self.quantizer.bits

    @property
    def is_ternary(self) -> bool:
        """Whether three codes are all there are, so that five fit into a byte."""
        return is_ternary(self.quantizer)

    @property
    def largest_code(self) -> int:
        """Largest |code| of the grid; exponent indices end where the positive levels do."""
        is_projected = isinstance(self.quantizer, (WeightQuantizer, ProjectedWeight))
        return max(1, len(self.quantizer.levels) // 2 if is_projected else 1 << (self.bits - 1))

    def hard(self) -> Tensor:
        """The hard weight in float32, bit for bit what the network held."""
        return self.quantizer.decode(self.codes, self.scale)

    def latent(self) -> Tensor:
        """A float weight from which training may go on: one that has these codes.

        On uniform and power-of-two grids, whose projections are not exact, a few codes may differ.
        """
        if isinstance(self.quantizer, WeightParametrization):
            return self.quantizer.latent(self.codes, self.scale)
        return self.hard()

    def levels(self) -> Tensor:
        """The level of each weight in units of the scale, float32."""
        return self.quantizer.decode(self.codes, torch.ones(()))

    def integers(self) -> tuple[Tensor, float]:
        """The levels as int32 and the unit they count, a power of two: levels = integers * unit."""
        least = min(abs(level) for level in self.quantizer.levels if level)
        unit = min(1.0, least)
        return (self.levels() / unit).int(), unit

    def packed(self, *, trits: bool = False) -> Tensor:
        """The codes in a row of bytes, see `bits.py`; `trits` for ternary ones only."""
        if trits:
            return pack_trits(self.codes + 1)
        return pack_bits(_unsigned(self.codes, self.bits), self.bits)


def is_ternary(quantizer: WeightQuantizer | WeightParametrization) -> bool:
    """Whether -1, 0 and 1 are all the levels."""
    return quantizer.levels == (-1.0, 0.0, 1.0)


def weight_codes(weight: Tensor, quantizer: WeightQuantizer | WeightParametrization) -> WeightCodes:
    """Codes of a weight: of the nearest grid point, or of the weight itself if it is hard already.

    A hard weight is not projected again, which on a uniform grid could move its codes: its level
    and its scale are read off, so that `hard()` gives back the same bits.

    Args:
        weight: latent or hard.
        quantizer: of the layer.
    """
    weight = weight.detach().float().cpu()
    codes, scale = quantizer.encode(weight)
    nearest = WeightCodes(codes, scale, quantizer)
    if isinstance(quantizer, WeightParametrization) or torch.equal(nearest.hard(), weight):
        return nearest
    return _read_off(weight, nearest, quantizer) or nearest


def unpacked(
    data: Tensor,
    scale: Tensor,
    shape: torch.Size,
    quantizer: WeightQuantizer | WeightParametrization,
    *,
    trits: bool = False,
) -> WeightCodes:
    """What `WeightCodes.packed` has packed.

    Raises:
        CheckpointError: the bytes are not that many codes of the grid, or the scale has another
            shape or is not finite.
    """
    bits, count = quantizer.bits, shape.numel()
    if trits:
        codes = unpack_trits(data, count).to(torch.int8) - 1
    else:
        codes = _signed(unpack_bits(data, bits, count), bits)
    wanted = (shape[0], *(1 for _ in shape[1:])) if quantizer.granularity == "channel" else ()
    if scale.shape != wanted or scale.dtype != torch.float32 or not bool(scale.isfinite().all()):
        raise CheckpointError(
            f"a scale must be finite float32 of shape {wanted}, got {scale.dtype} of shape "
            f"{tuple(scale.shape)}"
        )
    weight = WeightCodes(codes.view(shape), scale, quantizer)
    if count and int(codes.short().abs().max()) > weight.largest_code:
        raise CheckpointError(f"a code is no level of the {quantizer.kind} grid of {bits} bits")
    return weight


def stored_codes(bits: int) -> Tensor:
    """The code that each of the unsigned numbers 0 .. 2^bits - 1 of a packed weight stands for."""
    return _signed(torch.arange(2**bits), bits)


def _unsigned(codes: Tensor, bits: int) -> Tensor:
    """Codes int8 as 0 .. 2^bits - 1: the signs as bits, others shifted by 2^(bits-1)."""
    wide = codes.short()
    return ((wide + 1) >> 1 if bits == 1 else wide + 2 ** (bits - 1)).to(torch.uint8)


def _signed(codes: Tensor, bits: int) -> Tensor:
    wide = codes.short()
    return (2 * wide - 1 if bits == 1 else wide - 2 ** (bits - 1)).to(torch.int8)


def _read_off(
    weight: Tensor, nearest: WeightCodes, quantizer: WeightQuantizer
) -> WeightCodes | None:
    """Codes and scale of a hard weight, None if the weight is not on the grid to the last bit."""
    every = torch.tensor(quantizer.levels)
    groups = nearest.scale.numel()
    rows, scales, levels = weight.reshape(groups, -1), [], []
    for row in rows:
        found = _row_scale(row, every)
        if found is None:
            return None
        scales.append(found)
        levels.append(_nearest_level(row, found, every))
    scale = torch.stack(scales).view(nearest.scale.shape)
    codes = quantizer.codes_of(torch.stack(levels).view(weight.shape))
    return WeightCodes(codes, scale, quantizer)


def _row_scale(row: Tensor, every: Tensor) -> Tensor | None:
    """The float32 scale with row == level * scale bit for bit, or None."""
    values = torch.unique(row)
    if len(values) > len(every):
        return None
    largest: Tensor = values.abs().max()
    if largest == 0:
        return largest
    for level in sorted({abs(float(k)) for k in every if k != 0}, reverse=True):
        guess = (largest.double() / level).float()
        distance = values / guess - _nearest_level(values, guess, every)
        if float(distance.abs().max()) > _FITS * max(1.0, float(every.max())):
            continue
        for scale in _neighbours(guess):
            if torch.equal(_nearest_level(values, scale, every) * scale, values):
                return scale
    return None


def _nearest_level(values: Tensor, scale: Tensor, every: Tensor) -> Tensor:
    # a scale of 0 has zeros only; right=True makes a binary one +1, as encode does
    units = values / scale if scale != 0 else values
    return every[torch.bucketize(units, (every[1:] + every[:-1]) / 2, right=True)]


def _neighbours(value: Tensor) -> list[Tensor]:
    """A float32 number and the two above and below it."""
    up = torch.nextafter(value, torch.tensor(torch.inf))
    down = torch.nextafter(value, torch.tensor(0.0))
    ends = torch.nextafter(up, torch.tensor(torch.inf)), torch.nextafter(down, torch.tensor(0.0))
    return [value, up, down, *ends]
