"""Requantization: weight factor and integer bias with which an int8 layer gives the same codes.

An integer layer computes code = round(r (k a + B)), a the sum of levels times codes, k the factor
of the int8 weights, B an int32 bias, r = x_scale w_scale / step in float32. The network's code is
at least j from the sum A_j on. Both agree on every sum if for all j

    r (k A_j + B) >= j - 1/2   and   r (k (A_j - 1) + B) < j - 1/2,

an interval for B. For few bits k can be chosen so that the interval holds an integer; where it
does not, the B nearest to all intervals is taken and a few codes beside the jumps differ.
"""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from qat.export.integer.graph import Layer
from qat.nn.activation_codes import CodeRule

_INT8 = 127
_PAIR = 2**15 - 1  # two products of uint8 and int8 are added in 16 bits by some kernels
_LARGEST = 2**31 - 1  # of a sum with its bias, in 32 bits
_AT_ONCE = 2**22  # candidates times jumps, of which some tables are made

# share of the interval's unit kept free, for the float32 arithmetic of the runtime
_MARGIN = 0.05


class Requantization(NamedTuple):
    """Of a layer with O output channels.

    Attributes:
        factor: k, int64 (O,), with the sign of the channel's multiplier; 0 for a channel whose
            weights vanish beside its offset or a step.
        bias: B, float64 (O,) of whole numbers.
        scale: float32 (O,), of the int8 weights: value = scale * int8.
        is_exact: bool (O,), whether every sum gives the network's code.
    """

    factor: Tensor
    bias: Tensor
    scale: Tensor
    is_exact: Tensor


def int8_layer(
    node: Layer,
    offset: Tensor,
    rule: CodeRule,
    *,
    x_scale: float,
    x_peak: int,
    largest_byte: int,
) -> Requantization:
    """Factor, bias and scale of a layer of integer weights on codes.

    Args:
        node: with codes whose integers fit into int8.
        offset: float64 (O,), of the layer.
        rule: of what quantizes its result; not a sign.
        x_scale: step of its input.
        x_peak: largest |code| of its input.
        largest_byte: that stands for such a code, the byte of 0 included.
    """
    assert node.codes is not None  # by `fits_int8`
    integers, unit = node.codes.integers()
    most = max(1, int(integers.abs().max()))
    largest = max(1, min(_INT8 // most, _PAIR // (2 * largest_byte * most)))
    multiplier = node.multiplier.abs() * (unit * x_scale)
    is_dead = offset.abs() + rule.step * rule.peak > multiplier * _LARGEST
    peak = x_peak * int(integers.flatten(1).abs().sum(dim=1).max())
    alive = torch.where(is_dead, rule.step, multiplier)
    found = requantization(alive, offset, rule, x_scale=x_scale, largest=largest, peak=peak)
    code, lowest, highest = (
        _code(offset + side * multiplier * peak, rule) for side in (0.0, -1.0, 1.0)
    )
    return Requantization(
        factor=torch.where(is_dead, 0, torch.where(node.multiplier < 0, -1, 1) * found.factor),
        bias=torch.where(is_dead, code, found.bias),
        scale=torch.where(is_dead, rule.step / x_scale, found.scale),
        is_exact=torch.where(is_dead, lowest == highest, found.is_exact),
    )


def _code(value: Tensor, rule: CodeRule) -> Tensor:
    return (value / rule.step - rule.shift).ceil().clamp(rule.low, rule.high)


def requantization(
    multiplier: Tensor, offset: Tensor, rule: CodeRule, *, x_scale: float, largest: int, peak: int
) -> Requantization:
    """The best factor and bias of each channel.

    Args:
        multiplier: float64 (O,), > 0: of a sum of codes of x and levels, x_scale included.
        offset: float64 (O,), in front of the quantizer.
        rule: of the quantizer behind the layer; not a sign.
        x_scale: step of x.
        largest: largest factor allowed, >= 1.
        peak: bound of |sum|.
    """
    choose = partial(_chosen, rule=rule, x_scale=x_scale, largest=largest, peak=peak)
    found = choose(multiplier, offset, stretch=torch.ones(1, dtype=torch.float64))
    missed = ~found.is_exact
    if bool(missed.any()):  # other scales, which move the jumps of large sums more than of small
        stretch = 1 + 2.0**-7 * torch.linspace(-1, 1, 17, dtype=torch.float64)
        again = choose(multiplier[missed], offset[missed], stretch=stretch)
        for old, new in zip(found, again, strict=True):
            old[missed] = new
    return found


def _chosen(
    multiplier: Tensor,
    offset: Tensor,
    *,
    rule: CodeRule,
    stretch: Tensor,
    x_scale: float,
    largest: int,
    peak: int,
) -> Requantization:
    """The candidate with the most room on both sides, of every factor and stretched scale."""
    rows = max(1, _AT_ONCE // ((rule.high - rule.low) * len(stretch) * largest))
    if len(multiplier) > rows:
        choose = partial(_chosen, rule=rule, stretch=stretch, x_scale=x_scale, largest=largest)
        pairs = zip(torch.split(multiplier, rows), torch.split(offset, rows), strict=True)
        parts = [choose(m, b, peak=peak) for m, b in pairs]
        return Requantization(*(torch.cat(field) for field in zip(*parts, strict=True)))
    j = torch.arange(rule.low + 1, rule.high + 1, dtype=torch.float64)
    jumps = (j - 1 + float(rule.shift)) * rule.step
    first = ((jumps - offset[:, None]) / multiplier[:, None]).floor() + 1  # A_j, (O, J)
    every = torch.arange(1, largest + 1, dtype=torch.float64)
    factors = every.repeat_interleave(len(stretch))
    exact_scale = multiplier[:, None] / (x_scale * factors)
    scale = (exact_scale * stretch.repeat(len(every))).float()  # (O, F)
    ratio = (scale * torch.tensor(x_scale).float() / torch.tensor(rule.step).float()).double()
    nearest = (j - 0.5) / ratio[:, :, None] - factors[:, None] * first[:, None, :]  # (O, F, J)
    # a jump bounds B from below by the first sum above it, from above by the last one in front
    above, before = ((sums.abs() <= peak)[:, None, :] for sums in (first, first - 1))
    low = nearest.masked_fill(~above, -torch.inf).amax(dim=2)
    high = (nearest + factors[:, None]).masked_fill(~before, torch.inf).amin(dim=2)
    # no jump within reach: any bias that keeps the side will do, the nearest one does
    plain = (offset / multiplier)[:, None] * factors + (0.5 - float(rule.shift)) / ratio
    middle = torch.where(torch.isfinite(low + high), (low + high) / 2, plain)
    middle = middle.maximum(low).minimum(high.maximum(low))
    bias = middle.round()
    slack = torch.minimum(bias - low, high - bias)
    slack = slack.masked_fill(bias.abs() + factors * peak > _LARGEST, -torch.inf)
    best = slack.argmax(dim=1, keepdim=True)
    # float32 knows neither a sum beyond 24 bits nor its product with the ratio to the last bit
    unknown = 2**-23 * rule.peak / ratio
    return Requantization(
        factor=factors[best.squeeze(1)].long(),
        bias=bias.gather(1, best).squeeze(1),
        scale=scale.gather(1, best).squeeze(1),
        is_exact=(slack - unknown).gather(1, best).squeeze(1) >= _MARGIN,
    )
