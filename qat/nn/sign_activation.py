"""Sign activation: 1 bit, with levels -1 and 1."""

import torch
from torch import Tensor, nn

from qat.errors import SpecError
from qat.functional.sign import sign_ste
from qat.names import Derivative
from qat.nn.activation import QuantizedActivation


class SignActivation(QuantizedActivation):
    """sign(x + b) in place of the ReLU, with a coarse derivative and an optional shift b.

        y = 1 if x + b_c >= 0 else -1

    The derivative in b is that in x, summed over everything but the channel. While `enabled` is
    False the module is what it replaced: a ReLU, or the identity if signed.

    Args:
        derivative: coarse derivative in x, see `qat.functional.ste.sign_slope`.
        channels: number of channels C of the inputs (N, C, ...) for a learned shift per channel;
            None for no shift.
        signed: whether it stands on an input that is not behind a ReLU.
        ceiling: upper end of the float activation that this one replaces (6 for ReLU6), or None.

    Attributes:
        shift: b, a parameter (C,) that starts at 0, or None.

    Source: arXiv:1602.02830; the shift is that of ReActNet, arXiv:2003.03488, whose paper subtracts
    a threshold where its code adds a bias.
    """

    has_zero = False
    lowest_signed = 1
    shift: Tensor | None

    def __init__(
        self,
        derivative: Derivative = "piecewise_quadratic",
        *,
        channels: int | None = None,
        signed: bool = False,
        ceiling: float | None = None,
    ) -> None:
        super().__init__(1, derivative, signed=signed, ceiling=ceiling)
        shift = None if channels is None else nn.Parameter(torch.zeros(channels))
        self.register_parameter("shift", shift)

    def quantize(self, x: Tensor) -> Tensor:
        """Signs of x."""
        if self.shift is not None:
            if x.shape[1] != len(self.shift):
                raise SpecError(
                    f"a sign with a shift of {len(self.shift)} channels got inputs of shape "
                    f"{tuple(x.shape)}; prepare the network with an example of its own images"
                )
            x = x + self.shift.view(-1, *(1 for _ in x.shape[2:])).to(x.dtype)
        return sign_ste(x, self.derivative, sharpness=self.sharpness)

    def extra_repr(self) -> str:
        """Options that distinguish two quantizers."""
        shift = "" if self.shift is None else f", shift of {len(self.shift)} channels"
        return super().extra_repr() + shift
