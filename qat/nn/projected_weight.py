"""Projected weights in the graph: the straight-through form of a projection, and its end."""

from typing import Any

import torch
from torch import Tensor, nn

from qat.nn.parametrization import WeightParametrization
from qat.nn.weight import WeightQuantizer


class ProjectedWeight(WeightParametrization):
    """Straight-through projection of a weight that is no parameter: Q(w), d Q / d w = 1.

    For weights that a network's forward makes of its parameters, which no update rule can project:
    autograd goes through the projection as if it were not there, and on into what made w.

    Args:
        projection: Q.

    Source: the identity as straight-through estimator, arXiv:1511.00363.
    """

    def __init__(self, projection: WeightQuantizer) -> None:
        nn.Module.__init__(self)
        self.projection = projection
        self.kind = projection.kind  # type: ignore[misc,assignment]
        self.bits, self.granularity = projection.bits, projection.granularity
        self.derivative = "identity"
        self.enabled = True
        self.register_buffer("sharpness", None)

    def forward(self, w: Tensor) -> Tensor:
        """Q(w) of w's shape and dtype; w while disabled."""
        return _straight_through(w, self.projection(w)) if self.enabled else w

    @property
    def levels(self) -> tuple[float, ...]:
        """The values in units of the scale, rising."""
        return self.projection.levels

    def encode(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """Codes and scale, as the projection gives them."""
        return self.projection.encode(w)

    def decode(self, codes: Tensor, scale: Tensor, *, dtype: torch.dtype = torch.float32) -> Tensor:
        """Values of codes and scale, as the projection gives them."""
        return self.projection.decode(codes, scale, dtype=dtype)


class FixedWeight(WeightParametrization):
    """A weight that training has left: the same values, whatever enters.

    Args:
        weight: on its grid.
        quantizer: that has put it there.
    """

    weight: Tensor

    def __init__(self, weight: Tensor, quantizer: WeightQuantizer | WeightParametrization) -> None:
        nn.Module.__init__(self)
        self.kind = quantizer.kind  # type: ignore[misc,assignment]
        self.bits, self.granularity = quantizer.bits, quantizer.granularity
        self.derivative = "identity"
        self.enabled = True
        self._levels = quantizer.levels
        self.register_buffer("sharpness", None)
        self.register_buffer("weight", weight)

    def forward(self, w: Tensor) -> Tensor:
        """The weight, in w's dtype."""
        return self.weight.to(w.dtype)

    @property
    def levels(self) -> tuple[float, ...]:
        """The values in units of the scale, rising."""
        return self._levels


class _StraightThrough(torch.autograd.Function):
    """The second argument, with the gradient of the first."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, quantized: Tensor) -> Tensor:
        return quantized.view_as(quantized)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def _straight_through(w: Tensor, quantized: Tensor) -> Tensor:
    result: Tensor = _StraightThrough.apply(w, quantized)
    return result
