"""Levels of a quantizer's bytes: what an index stands for, in floats and in integers."""

from dataclasses import dataclass

import torch
from torch import Tensor

from qat.functional.kernels import Fused, fuses, numbers


@dataclass(frozen=True, slots=True)
class Levels:
    """Levels of bytes: value = step * clip(stride * index + offset, low, high).

    Attributes:
        step: 0-dim, of the dtype that the values were computed in.
        offset: code of index 0, before the clip.
        low: smallest code.
        high: largest code.
        stride: codes from one index to the next.
    """

    step: Tensor
    offset: int
    low: int
    high: int
    stride: int = 1

    def values(self, index: Tensor, dtype: torch.dtype) -> Tensor:
        """The levels in the layout of the index, bit for bit as the quantizer computed them.

        But for the sign of a zero, which no sum and no product with a finite number can tell.

        Args:
            index: uint8.
            dtype: of the result, to which the quantizer has rounded, too.
        """
        if fuses(index, self.step):
            rule = numbers((self.stride, self.offset, self.low, self.high), index.device)
            values: Tensor = _levels.over(index, step=self.step, rule=rule, dtype=dtype)
            return values
        if self.stride == 1 and self.offset == self.low == 0:
            codes = index.clamp(max=self.high).to(self.step.dtype)  # bytes are clipped faster
        else:
            codes = index.to(self.step.dtype).mul_(self.stride).add_(self.offset)
            codes.clamp_(self.low, self.high)
        return codes.mul_(self.step).to(dtype)

    @property
    def zero_point(self) -> int | None:
        """The byte of code 0 among `operand`'s; None where not all codes and 0 are bytes then."""
        fits = 0 <= -self.offset <= self.high - self.offset <= 255 and self.low >= self.offset
        return -self.offset if fits else None

    def operand(self, index: Tensor) -> Tensor:
        """Codes plus `zero_point` as uint8, of the index's shape and layout."""
        if self.stride != 1:
            index = index * self.stride
        low, high = self.low - self.offset, self.high - self.offset
        return index.clamp(max=high) if low == 0 else index.clamp(low, high)

    def codes(self, index: Tensor, dtype: torch.dtype) -> Tensor:
        """Codes as floats, of the index's shape and layout."""
        codes = index.to(dtype)
        if self.stride != 1:
            codes.mul_(self.stride)
        return (
            codes.add_(self.offset).clamp_(self.low, self.high)
            if self.offset
            else codes.clamp_(max=self.high)
        )

    def signed(self, index: Tensor) -> Tensor | None:
        """Codes as int8; None if they reach further than -127 .. 127."""
        if max(-self.low, self.high) > torch.iinfo(torch.int8).max:
            return None
        codes = index.to(torch.int16).mul_(self.stride).add_(self.offset)
        return codes.clamp_(self.low, self.high).to(torch.int8)


@Fused
def _levels(index: Tensor, *, step: Tensor, rule: Tensor, dtype: torch.dtype) -> Tensor:
    codes = index.to(step.dtype) * rule[0] + rule[1]
    return (codes.clamp(rule[2], rule[3]) * step).to(dtype)
