"""Layer records: alpha, flips, distance, scale and histogram of each layer while it trains."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, count
from typing import Any, Self

import torch
from torch import Tensor, nn

from qat.lit.measure.flips import Quantizer, flip_rate
from qat.lit.quantized import LitQuantized
from qat.nn.activation_codes import code_rule
from qat.nn.binary_parametrization import BiperWeight
from qat.nn.parametrization import DorefaWeight
from qat.nn.sign_activation import SignActivation
from qat.quantize.activations import activation_quantizers
from qat.quantize.weights import latent_weight, latent_weights, weight_parametrizations

BINS = 41
_HALF = BINS // 2


@dataclass(frozen=True, slots=True)
class LayerWeight:
    """Latent weight w that enters products, what quantizes it, and its codes and scale."""

    layer: str
    latent: Tensor
    quantizer: Quantizer
    codes: Tensor
    scale: Tensor

    @classmethod
    def encoded(cls, layer: str, latent: Tensor, quantizer: Quantizer) -> Self:
        """The weight as it is now."""
        return cls(layer, latent, quantizer, *quantizer.encode(latent))


def layer_weights(module: LitQuantized) -> Iterator[LayerWeight]:
    """Every quantized weight of a network in training, once, in the order of registration."""
    optimizer = module.quant_optimizer
    assert optimizer is not None  # made before training begins
    by_parameter: dict[Tensor, tuple[Tensor, Any]] = dict(
        zip(optimizer.latent_weights_by_parameter(), optimizer.latent_pairs(), strict=True)
    )
    for name, quantizer in weight_parametrizations(module.net):
        parameter = latent_weight(module.net, name)
        by_parameter[parameter] = parameter.detach(), quantizer
    for name, parameter in latent_weights(module.net).items():
        if parameter in by_parameter:
            yield LayerWeight.encoded(name, *by_parameter[parameter])


def alphas(net: nn.Module) -> dict[str, float]:
    """Activation quantizer -> distance of two neighbouring levels; signs have none."""
    return {
        name: code_rule(quantizer, name).step
        for name, quantizer in activation_quantizers(net).items()
        if not isinstance(quantizer, SignActivation)
    }


@torch.no_grad()
def quantities(weight: LayerWeight, before: Tensor | None) -> dict[str, float]:
    """How a weight stands to its grid, and to the record before.

        flip_rate   share of the codes that are others than before, 0..1; absent without a before
        distance    ||w - Q(w)|| / ||w||, 0 (on the grid) .., nan where a weight is not finite
        scale       mean over the channels

    Args:
        weight: the latent weight.
        before: codes int8 of its shape in the record before, or None.
    """
    w, codes, scale = weight.latent, weight.codes, weight.scale
    size = float(w.norm())
    gap = float((w - weight.quantizer.decode(codes, scale)).norm())
    # a weight of zeros lies on its grid; nan is neither
    found = {"distance": 0.0 if size == 0 else gap / size, "scale": float(scale.mean())}
    if before is not None:
        found["flip_rate"] = flip_rate([before], [codes])
    return found


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts of a weight's positions between the levels of its grid.

    Attributes:
        reach: the BINS bins, equally wide, go from -reach to reach, in units of the scale.
        counts: of the bins; the first and the last also count what lies beyond.
    """

    reach: float
    counts: list[int]


@torch.no_grad()
def histogram(weight: LayerWeight) -> Histogram | None:
    """Where the latent weights lie, in units of their scale; None if the grid has no such picture.

    0 is the centre of the middle bin, and so are as many of the levels as 41 bins allow. A weight
    that is not finite has no picture either.
    """
    position = _position(weight)
    if position is None or not torch.stack(position.aminmax()).isfinite().all():
        return None  # a NaN is the least and the largest of its tensor
    width = bin_width(weight.quantizer.levels)
    places = position.div_(width).round_().clamp_(-_HALF, _HALF).add_(_HALF)
    counts = torch.bincount(places.flatten().to(torch.uint8).cpu(), minlength=BINS)
    return Histogram(width * BINS / 2, counts.tolist())


def bin_width(levels: tuple[float, ...]) -> float:
    """Width of a bin in units of the scale.

    A sixth for signs and ternary weights, which spread far beyond their levels. Else the narrowest
    of 1/8, 1/4, 1/2, 1, 3, 5 ... whose bins reach 1.35 times the highest level: no integer level
    is on an edge.

    >>> bin_width((-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0))
    0.25
    """
    if len(levels) <= 3:
        return 1 / 6
    widths: Iterator[float] = chain((1 / 8, 1 / 4, 1 / 2), count(1, 2))
    return next(width for width in widths if width * BINS / 2 >= 1.35 * max(levels))


def _position(weight: LayerWeight) -> Tensor | None:
    """What the quantizer rounds, in units of its scale, as a fresh tensor."""
    w, quantizer, scale = weight.latent, weight.quantizer, weight.scale
    if isinstance(quantizer, BiperWeight):  # its levels are periodic in w
        return None
    if isinstance(quantizer, DorefaWeight) and quantizer.bits > 1:
        squashed = w.tanh()
        largest = squashed.abs().amax()
        w = squashed / torch.where(largest > 0, largest, torch.ones_like(largest))
    # all weights of a scale zero: no division by 0
    return w / torch.where(scale > 0, scale, torch.ones_like(scale))
