"""Activation functions on integer sums: a code is a count of thresholds of the sum.

What stands in front of an activation function is a sum of integers, u = sum_i m_i t_i + b. Where a
quantizer follows, its code c = clip(ceil(phi(u) / step - shift), low, high) is low and the number
of levels k > low with phi(u) > step (k - 1 + shift). On a piece where phi rises this is u > u_k, on
one where it falls u < a_k; u_k and a_k are found once, as numbers of the same binary places as u,
so that only integers are compared.

Where no quantizer follows (a product, a mean, a sum), phi(u) is rounded to a fixed point that fits
into 31 bits.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from qat.export.integer.numbers import Combination, Term, over_channels
from qat.nn.activation_codes import CodeRule

_FAR = 2**62  # beyond every sum
_HALVINGS = 1100  # more than there are between any two numbers of float64
_BITS = 30
_INFINITY = torch.tensor(torch.inf, dtype=torch.float64)


@dataclass(frozen=True, slots=True)
class Curve:
    """An activation function that falls up to one place and rises from there on.

    Attributes:
        value: of float64, element by element.
        turn: the place; minus infinity if it never falls.
    """

    value: Callable[[Tensor], Tensor]
    turn: float = -torch.inf


def _gelu(approximate: str) -> Callable[[Tensor], Tensor]:
    return lambda u: F.gelu(u, approximate=approximate)


def _lowest(value: Callable[[Tensor], Tensor]) -> float:
    """Where a function has its one minimum between -3 and 0: its slope is halved to 0."""
    low, high = -3.0, 0.0
    for _ in range(60):
        middle = (low + high) / 2
        place = torch.tensor(middle, dtype=torch.float64, requires_grad=True)
        with torch.enable_grad():
            (slope,) = torch.autograd.grad(value(place), place)
        low, high = (middle, high) if slope < 0 else (low, middle)
    return high


@cache
def curve_of(kind: str) -> Curve:
    """The curve of a name, which is that of its function in torch.nn.functional.

    >>> round(curve_of("silu").turn, 6), curve_of("sigmoid").turn
    (-1.278465, -inf)
    """
    with torch.inference_mode(False):
        turn = _lowest(_VALUES[kind]) if kind in _TURNING else -torch.inf
    return Curve(_VALUES[kind], turn)


_VALUES: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda u: u,
    "relu": F.relu,
    "relu6": F.relu6,
    "hardsigmoid": F.hardsigmoid,
    "hardswish": F.hardswish,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "gelu": _gelu("none"),
    "gelu_tanh": _gelu("tanh"),
}
_TURNING = ("hardswish", "silu", "gelu", "gelu_tanh")
CURVES = tuple(name for name in _VALUES if name != "identity")


@dataclass(frozen=True, slots=True)
class Curved:
    """phi(u) of a sum of integers, not yet computed.

    Attributes:
        kind: name of the curve.
        sums: u.
    """

    kind: str
    sums: Combination

    def real(self) -> Tensor:
        """Its value in float64."""
        return curve_of(self.kind).value(self.sums.real())

    @property
    def _start(self) -> float:
        """Where the curve begins to rise, of what the sums may reach."""
        reach = self.sums.reach
        return max(-reach, min(reach, curve_of(self.kind).turn))

    def codes(self, rule: CodeRule) -> Tensor:
        """Codes int32 of a quantizer, by comparing integers alone."""
        curve, reach, start = curve_of(self.kind), self.sums.reach, self._start
        z, places = self.sums.fixed_point(1.0, torch.zeros((), dtype=torch.float64))
        found = self._passed(rule, z, places, curve.value, start)
        if curve.turn > -reach:  # left of the turn the curve rises, too, if it is walked backwards
            before = self._passed(rule, -z, places, lambda u: curve.value(-u), -start)
            turn = int(_units(torch.tensor(start, dtype=torch.float64), places))
            found = torch.where(z < turn, before, found)
        return (2 * found - 1 if rule.is_sign else found + rule.low).int()

    def _passed(
        self,
        rule: CodeRule,
        z: Tensor,
        places: int,
        value: Callable[[Tensor], Tensor],
        start: float,
    ) -> Tensor:
        """How many jumps of the quantizer lie below each z, where the value rises from `start`."""
        reach = self.sums.reach
        if rule.is_sign:
            heights = torch.nextafter(rule.shift, -_INFINITY)
            return (z > over_channels(_crossings(value, heights, start, reach, places), z)).long()
        levels = torch.arange(rule.low, rule.high, dtype=torch.float64)
        heights = rule.step * (levels + rule.shift)
        return torch.bucketize(z, _crossings(value, heights, start, reach, places))

    def rounded(self) -> Combination:
        """Its value as one integer tensor of 31 bits, times a power of two.

        phi(u) in float64 to the nearest multiple of 2^-f, f as large as the bound of |phi(u)|
        allows.
        """
        reach = self.sums.reach
        ends = torch.tensor([-reach, self._start, reach], dtype=torch.float64)
        bound = float(curve_of(self.kind).value(ends).abs().max())
        places = _BITS - int(torch.tensor(bound, dtype=torch.float64).frexp().exponent)
        integers = torch.ldexp(self.real(), torch.tensor(places)).round().int()
        unit = torch.ldexp(torch.ones((), dtype=torch.float64), torch.tensor(-places))
        term = Term(integers, unit, 2**_BITS)
        return Combination((term,), torch.zeros((), dtype=torch.float64))


def product(a: Combination, b: Combination) -> Combination:
    """Product of two tensors that broadcast, each one integer tensor times one number.

    In int64, rounded to the nearest of 31 bits where it is larger.
    """
    one, other = a.terms[0], b.terms[0]
    integers = one.integers.long() * other.integers.long()
    term = narrowed(integers, one.multiplier * other.multiplier, one.peak * other.peak)
    return Combination((term,), torch.zeros((), dtype=torch.float64))


def narrowed(integers: Tensor, multiplier: Tensor, peak: int) -> Term:
    """A term of int64 as one of int32: rounded to the nearest of the places that it has not."""
    places = max(0, peak.bit_length() - _BITS)
    half = (1 << places) >> 1
    factor = torch.ldexp(multiplier, torch.tensor(places))
    return Term(((integers + half) >> places).int(), factor, (peak + half) >> places)


def scaled_integer(value: Combination) -> Combination:
    """A value as one integer tensor times one number; codes are that already."""
    return value if value.is_scaled_integer else Curved("identity", value).rounded()


def _crossings(
    value: Callable[[Tensor], Tensor], heights: Tensor, low: float, high: float, places: int
) -> Tensor:
    """Where a rising function passes each height, in whole units of 2^-places.

    Of the largest number in [low, high] at which it is not above the height the unit below, int64;
    minus `_FAR` where it is above everywhere, `_FAR` where nowhere.
    """
    below, above = torch.full_like(heights, low), torch.full_like(heights, high)
    is_always, is_never = value(below) > heights, value(above) <= heights
    for _ in range(_HALVINGS):
        middle = below + (above - below) / 2
        is_found = _units(below, places) == _units(above, places)
        if bool((is_found | (middle <= below) | (middle >= above)).all()):
            break
        is_above = value(middle) > heights
        above = torch.where(is_above, middle, above)
        below = torch.where(is_above, below, middle)
    found = torch.where(is_always, -_FAR, _units(below, places))
    return torch.where(is_never, _FAR, found)


def _units(values: Tensor, places: int) -> Tensor:
    """Whole units of 2^-places in values of float64."""
    return torch.ldexp(values, torch.tensor(places)).floor().long()
