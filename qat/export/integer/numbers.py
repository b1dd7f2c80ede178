"""Integer values: sums of integer tensors with one real multiplier per channel."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from qat.errors import SpecError

_INT32 = 2**31 - 1
# the largest sum of products stays below 2^62, so that int64 never overflows
_ROOM = 62
_CODES = 2**16


@dataclass(frozen=True, slots=True)
class Term:
    """multiplier * integers.

    Attributes:
        integers: int32 (N, C, H, W) or (N, C).
        multiplier: float64, of shape () or (C,).
        peak: bound of |integers|, known without looking at them.
    """

    integers: Tensor
    multiplier: Tensor
    peak: int

    def __post_init__(self) -> None:
        if self.peak > _INT32:
            raise SpecError(
                f"sums of integers may reach {self.peak:,}, which does not fit into 32 bits; "
                "use fewer bits in this layer"
            )


@dataclass(frozen=True, slots=True)
class Combination:
    """A sum of terms and of an offset per channel, exact in real numbers.

    Attributes:
        terms: at least one.
        offset: float64, of shape () or (C,).
    """

    terms: tuple[Term, ...]
    offset: Tensor

    @property
    def is_scaled_integer(self) -> bool:
        """Whether it is one integer tensor times one number, as codes are."""
        return len(self.terms) == 1 and self.terms[0].multiplier.ndim == 0 and not self.offset.any()

    @property
    def is_codes(self) -> bool:
        """Whether it is small integers times one number: codes, or their sums over windows."""
        return self.is_scaled_integer and self.terms[0].peak < _CODES

    @property
    def reach(self) -> float:
        """Bound of its magnitude, in every channel."""
        sums = self.offset.abs()
        for term in self.terms:
            sums = sums + term.multiplier.abs() * term.peak
        return float(sums.max())

    def mapped(self, function: Callable[[Tensor], Tensor], *, growth: int = 1) -> "Combination":
        """`function` of every integer tensor; `growth` bounds how often it adds a value up."""
        terms = [
            replace(term, integers=function(term.integers), peak=growth * term.peak)
            for term in self.terms
        ]
        return replace(self, terms=tuple(terms))

    def scaled(self, multiplier: Tensor, offset: Tensor) -> "Combination":
        """multiplier_c y_c + offset_c; both float64, () or (C,)."""
        terms = [replace(term, multiplier=term.multiplier * multiplier) for term in self.terms]
        return Combination(tuple(terms), self.offset * multiplier + offset)

    def __add__(self, other: "Combination") -> "Combination":
        return Combination(self.terms + other.terms, self.offset + other.offset)

    def real(self) -> Tensor:
        """Its value in float64."""
        total = over_channels(self.offset, self.terms[0].integers)
        for term in self.terms:
            total = total + over_channels(term.multiplier, term.integers) * term.integers
        return total

    def fixed_point(self, step: float, shift: Tensor) -> tuple[Tensor, int]:
        """Its value / step - shift in fixed point, by integer multiply-adds alone.

            z = sum_i M_i t_i + B,  M_i = round(2^f m_i / step),  B = round(2^f (b / step - shift))

        Args:
            step: > 0.
            shift: float64, () or (C,).

        Returns:
            z, int64, and the number f of binary places, as large as the peaks allow. 2^-f z is
            within 2^-f (1 + sum_i peak_i) / 2 of the exact value; the quotients, float64, add
            2^-52 of the largest one, sum_i peak_i |m_i / step| + |b / step| + |shift|.
        """
        offset = self.offset / step - shift
        factors = [term.multiplier / step for term in self.terms]
        peaks = [float(f.abs().max()) * t.peak for f, t in zip(factors, self.terms, strict=True)]
        largest = sum(peaks) + float(offset.abs().max()) + 1
        places = _ROOM - 1 - int(torch.tensor(largest, dtype=torch.float64).frexp().exponent)
        total: Tensor | None = None
        for factor, term in zip(factors, self.terms, strict=True):
            whole = over_channels(_whole(factor, places), term.integers) * term.integers.long()
            total = whole if total is None else total + whole
        assert total is not None  # there is a term
        return total + over_channels(_whole(offset, places), total), places


def _whole(value: Tensor, places: int) -> Tensor:
    return torch.ldexp(value, torch.tensor(places)).round().long()


def over_channels(values: Tensor, like: Tensor) -> Tensor:
    """Values of shape () or (C,) so that they broadcast over (N, C, ...)."""
    return values if values.ndim == 0 else values.view(-1, *(1 for _ in like.shape[2:]))
