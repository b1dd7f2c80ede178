"""Weight quantizer: a stateless projection of a weight onto the grid that its options name."""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import NamedTuple, Protocol, get_args

import torch
from torch import Tensor

from qat.errors import SpecError
from qat.functional.grid import (
    BINARY_LEVELS,
    TERNARY_LEVELS,
    fit_binary,
    fit_ternary_threshold,
    fit_uniform,
    uniform_levels,
)
from qat.functional.power_of_two import (
    exponent_codes,
    exponent_values,
    fit_power_of_two,
    power_of_two_levels,
)
from qat.functional.ternary import fit_ternary
from qat.functional.weight_codes import LARGEST, hold_scale
from qat.spec.quant import GRID_BITS, Granularity, Grid, default_grid

# Weights up to this size are projected together with others: larger ones fill a pass by themselves
_SMALL = 1 << 16
# torch gives a sum that is longer than this to several threads where it stands alone, and adds its
# parts up in another order; beside other rows it does not
_UNSPLIT = 1 << 15


@dataclass(frozen=True, slots=True)
class WeightQuantizer:
    """Maps a float weight to the nearest (or a near) point of its grid.

        Q(w) = value(code) * scale,   one scale per tensor or per output channel

    Stateless: equal options are equal objects. Calls are not recorded by autograd.

    Attributes:
        bits: 1 .. 8.
        granularity: one scale for the "tensor", or one per output "channel" (axis 0).
        grid: "binary" (1 bit), "ternary" (2, exact), "ternary_threshold" (2), "uniform" (2 .. 8) or
            "power_of_two" (2 .. 6); None chooses by bits: 1 binary, 2 ternary, 3 .. 8 uniform.
        mu: top threshold of power_of_two above two bits, as a fraction of max|w|, in (0, 1].
        rounds: alternations of uniform, >= 1.

    Raises:
        SpecError: an option is out of range, or grid and bits do not go together.
    """

    bits: int
    granularity: Granularity = "tensor"
    grid: Grid | None = None
    _: KW_ONLY
    mu: float = 0.75
    rounds: int = 5

    def __post_init__(self) -> None:
        if self.bits not in range(1, 9):
            raise SpecError(f"bits must be 1..8, got {self.bits!r}; leave float weights alone")
        if self.granularity not in get_args(Granularity):
            choices = " or ".join(get_args(Granularity))
            raise SpecError(f"granularity must be {choices}, got {self.granularity!r}")
        if self.bits not in GRID_BITS.get(self.kind, ()):
            raise SpecError(f"grid={self.kind!r} has no {self.bits}-bit form; use {_choices()}")
        if not 0 < self.mu <= 1:
            raise SpecError(f"mu must be in (0, 1], a fraction of max|w|; got {self.mu!r}")
        if self.rounds < 1:
            raise SpecError(f"rounds must be >= 1, got {self.rounds!r}")

    @torch.no_grad()
    def __call__(self, w: Tensor) -> Tensor:
        """Q(w) of w's shape, dtype and device; bit for bit the same as decode(*encode(w))."""
        values, _ = self._fit(w, scaled=True)
        return values.view(w.shape).to(w.dtype)

    @torch.no_grad()
    def write(self, weights: Sequence[Tensor], targets: Sequence[Tensor]) -> None:
        """Q(w) of each weight into its target, bit for bit as one call for each would give it.

        Small weights whose scale groups are of one length are projected as one matrix, so that
        their number costs little; others are projected straight into the target's memory.

        Args:
            weights: float tensors, not empty.
            targets: tensors of the same shapes, overwritten; none of them a weight.

        Raises:
            SpecError: as `encode`.
        """
        alike: dict[tuple[object, ...], list[int]] = {}
        for place, (w, target) in enumerate(zip(weights, targets, strict=True)):
            rows = self._rows(w)
            if rows.numel() <= _SMALL and rows.shape[1] <= _UNSPLIT:
                alike.setdefault((rows.shape[1], w.dtype, w.device), []).append(place)
            elif _is_row_major(w, target):
                fit = _KINDS[self.kind].fit
                _, scale = fit(rows, self, out=target.detach().view(rows.shape), scaled=True)
                self._tell(target, scale)
            else:
                values, scale = self._fit(w, scaled=True)
                target.copy_(values.view(w.shape))
                self._tell(target, scale)
        for places in alike.values():
            self._write_together([weights[i] for i in places], [targets[i] for i in places])

    def _write_together(self, weights: list[Tensor], targets: list[Tensor]) -> None:
        rows = [self._rows(w) for w in weights]
        together = torch.cat(rows) if len(rows) > 1 else rows[0]
        values, scales = _KINDS[self.kind].fit(together, self, scaled=True)
        counts = [r.shape[0] for r in rows]
        own = torch.split(values, counts)
        torch._foreach_copy_(targets, [v.view(w.shape) for v, w in zip(own, weights, strict=True)])
        for target, scale in zip(targets, torch.split(scales, counts), strict=True):
            self._tell(target, scale)

    def _tell(self, target: Tensor, scale: Tensor) -> None:
        """Tell products of codes the scale of what stands in a weight now."""
        unit = _unit(self.levels)
        if unit is not None:
            hold_scale(target, scale if unit == 1 else scale * unit)

    @torch.no_grad()
    def encode(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """Codes and scale of Q(w).

        Args:
            w: float tensor, not empty; for granularity "channel" its axis 0 counts the O channels.

        Returns:
            Codes int8 of w's shape: the level as an integer, for powers of two an exponent index
            (`exponent_codes`). Scale float32 of shape () per tensor, (O, 1, ..., 1) per channel.

        Raises:
            SpecError: w is empty, or has no axis to take channels from.
        """
        values, scale = self._fit(w)
        return self.codes_of(values).view(w.shape), scale.view(self._scale_shape(w))

    def codes_of(self, levels: Tensor) -> Tensor:
        """Codes int8 of levels in units of the scale, of their shape."""
        return _KINDS[self.kind].codes(levels, self.bits)

    @torch.no_grad()
    def decode(self, codes: Tensor, scale: Tensor, *, dtype: torch.dtype = torch.float32) -> Tensor:
        """Values of codes and scale as `encode` gives them, computed in float32, in `dtype`."""
        return _KINDS[self.kind].values(codes, self.bits).mul_(scale).to(dtype)

    @property
    def levels(self) -> tuple[float, ...]:
        """The grid's values in units of the scale, rising."""
        return _KINDS[self.kind].levels(self.bits)

    @property
    def kind(self) -> Grid:
        """The grid, chosen by bits if `grid` is None."""
        return self.grid or default_grid(self.bits)

    def _fit(self, w: Tensor, *, scaled: bool = False) -> tuple[Tensor, Tensor]:
        """Values float32 (G, N), a fresh tensor, and scale float32 (G, 1)."""
        return _KINDS[self.kind].fit(self._rows(w), self, scaled=scaled)

    def _rows(self, w: Tensor) -> Tensor:
        """The weight as rows (G, N), one for each scale."""
        if w.numel() == 0:
            raise SpecError(f"a weight of shape {tuple(w.shape)} is empty; leave it float")
        return w.detach().reshape(math.prod(self._scale_shape(w)), -1)

    def _scale_shape(self, w: Tensor) -> tuple[int, ...]:
        """Shape of the scale, which broadcasts to w's."""
        if self.granularity == "tensor":
            return ()
        if w.ndim == 0:
            raise SpecError("a scalar weight has no output channels; use granularity=tensor")
        return (w.shape[0], *(1 for _ in w.shape[1:]))


def _choices() -> str:
    """Every grid with its bit widths, for messages."""
    return ", ".join(f"{grid} with bits {min(b)}..{max(b)}" for grid, b in GRID_BITS.items())


@functools.cache
def _unit(levels: tuple[float, ...]) -> float | None:
    """The level that all others are multiples of; None where some are too many for a byte."""
    unit = min(level for level in levels if level > 0)
    codes = [level / unit for level in levels]
    fits = all(code == round(code) and abs(code) <= LARGEST for code in codes)
    return unit if fits else None


def _is_row_major(w: Tensor, target: Tensor) -> bool:
    """Whether rows of both are views of their memory, and float32 as the fits compute it."""
    return (
        w.dtype == target.dtype == torch.float32
        and w.device == target.device
        and w.is_contiguous()
        and target.is_contiguous()
    )


class _Fit(Protocol):
    """What fits rows (G, N) to a grid, into `out`, times their scales if they are wanted so."""

    def __call__(
        self,
        rows: Tensor,
        quantizer: WeightQuantizer,
        /,
        *,
        out: Tensor | None = None,
        scaled: bool = False,
    ) -> tuple[Tensor, Tensor]: ...


class _Kind(NamedTuple):
    """What a grid does; the last two convert between levels and codes, given the bits."""

    fit: _Fit
    levels: Callable[[int], tuple[float, ...]]
    codes: Callable[[Tensor, int], Tensor] = lambda values, _: values.to(torch.int8)
    values: Callable[[Tensor, int], Tensor] = lambda codes, _: codes.float()


def _plain(fit: Callable[[Tensor, WeightQuantizer], tuple[Tensor, Tensor]]) -> _Fit:
    """A fit of rows (G, N) alone, into fresh memory, as one that takes `out` and `scaled`."""

    def fitted(
        rows: Tensor,
        quantizer: WeightQuantizer,
        /,
        *,
        out: Tensor | None = None,
        scaled: bool = False,
    ) -> tuple[Tensor, Tensor]:
        values, scale = fit(rows, quantizer)
        if scaled:
            values.mul_(scale)
        return (values if out is None else out.copy_(values)), scale

    return fitted


_KINDS: dict[Grid, _Kind] = {
    "binary": _Kind(lambda rows, _, **to: fit_binary(rows, **to), lambda _: BINARY_LEVELS),
    "ternary": _Kind(lambda rows, _, **to: fit_ternary(rows, **to), lambda _: TERNARY_LEVELS),
    "ternary_threshold": _Kind(
        lambda rows, _, **to: fit_ternary_threshold(rows, **to), lambda _: TERNARY_LEVELS
    ),
    "uniform": _Kind(
        lambda rows, q, **to: fit_uniform(rows, q.bits, rounds=q.rounds, **to), uniform_levels
    ),
    "power_of_two": _Kind(
        lambda rows, q, **to: fit_power_of_two(rows, q.bits, mu=q.mu, **to),
        power_of_two_levels,
        exponent_codes,
        exponent_values,
    ),
}
