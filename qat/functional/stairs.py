"""Staircase codes: which there are, where they jump, what range they cover."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Stairs:
    """The codes of a staircase `alpha * clip(ceil(x / alpha - shift), low, high)`.

    Positions z = x / alpha count steps. Code k is worn on (k - 1 + shift, k + shift]; the jumps are
    at low + shift .. high - 1 + shift.

    Attributes:
        low: smallest code.
        high: largest code.
        first: code of the first interval on which the clipped coarse derivative is 1.
        shift: 0 for ceil, 1/2 for nearest (halves round down).
    """

    low: int
    high: int
    first: int
    shift: float

    @property
    def count(self) -> int:
        """Number n of codes `first .. high`."""
        return self.high - self.first + 1

    @property
    def mean(self) -> int:
        """Mean of the codes `first .. high`: 2^(b-1) behind a ReLU, 0 if signed."""
        return (self.first + self.high) // 2

    @property
    def start(self) -> float:
        """Lower end of the range (start, start + count] that the codes cover, in steps."""
        return self.first - 1 + self.shift


def relu_stairs(bits: int) -> Stairs:
    """Codes 0 .. 2^bits - 1 of a quantized ReLU; the interval of code 0 is x <= 0."""
    return Stairs(low=0, high=2**bits - 1, first=1, shift=0.0)


def signed_stairs(bits: int) -> Stairs:
    """Codes -(2^(bits-1) - 1) .. 2^(bits-1) - 1 for inputs that are not behind a ReLU."""
    largest = 2 ** (bits - 1) - 1
    return Stairs(low=-largest, high=largest, first=-largest, shift=0.5)
