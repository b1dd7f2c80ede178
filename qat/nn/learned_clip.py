"""Activation quantizers of the baselines: learned step (LSQ), learned clip (PACT), fixed (DoReFa).

Their clip and their scale have true gradients; the rounding to the nearest code in between has a
coarse derivative, the identity unless chosen otherwise.
"""

import torch
from torch import Tensor, nn

from qat.functional.gaussian import gaussian_step
from qat.functional.gradient import positive, scaled_gradient
from qat.functional.lsq import lsq_ste
from qat.functional.pact import pact_ste
from qat.functional.stairs import Stairs
from qat.names import Derivative
from qat.nn.activation import QuantizedActivation

# a learned scale or clip below this has no inverse worth taking
_LEAST = 1e-6


class LsqActivation(QuantizedActivation):
    """Learned step size: y = s round(clip(x / s, low, high)).

    Codes 0 .. 2^b - 1 behind a ReLU, -2^(b-1) .. 2^(b-1) - 1 if signed. With v = x / s

        d y / d x = 1 if low < v < high else 0
        d y / d s = round(v) - v inside, low below, high above; times 1 / sqrt(N high)

    N counts the elements of one image, so that the rate of s does not depend on the batch size;
    the sum over a batch of mean losses does the rest.

    Args:
        bits: 1..8 (signed: 2..8).
        derivative: coarse derivative of the rounding.
        signed: whether negative inputs have levels of their own.
        ceiling: upper end of the float activation that this one replaces (6 for ReLU6), or None.

    Attributes:
        scale: s, a 0-dim parameter; it starts at 2 mean|x| / sqrt(high) of the float activation.

    Source: arXiv:1902.08153.
    """

    needs_batches = True

    def __init__(
        self,
        bits: int,
        derivative: Derivative = "identity",
        *,
        signed: bool = False,
        ceiling: float | None = None,
    ) -> None:
        super().__init__(bits, derivative, signed=signed, ceiling=ceiling)
        low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
        self.stairs = Stairs(low=low, high=high, first=low, shift=0.5)
        self.scale = nn.Parameter(torch.tensor(gaussian_step(high)))

    def quantize(self, x: Tensor) -> Tensor:
        """Codes of x times s."""
        factor = (len(x) / (max(1, x.numel()) * self.stairs.high)) ** 0.5
        s = positive(scaled_gradient(self.scale, factor), _LEAST)
        return lsq_ste(
            x, s, stairs=self.stairs, derivative=self.derivative, sharpness=self.sharpness
        )

    def measure(self, x: Tensor) -> tuple[float, int]:
        """(sum of |x| of the float activation, number of elements)."""
        size = x.double().abs() if self.signed else x.double().clamp(min=0, max=self.ceiling)
        return float(size.sum()), x.numel()

    @torch.no_grad()
    def start_from(self, mean: float) -> None:
        """Start s at 2 mean|x| / sqrt(high)."""
        self.scale.fill_(max(2 * mean / self.stairs.high**0.5, _LEAST))


class PactActivation(QuantizedActivation):
    """Learned clip a: y = clip(x, 0, a) rounded to the nearest of the 2^b levels 0 .. a.

        d y / d x = 1 if 0 <= x < a else 0      (times the slope of the rounding)
        d y / d a = 1 if x >= a else 0          (whatever that slope)

    Signed: clip(x, -a, a) on 2^b - 1 levels, d y / d a = -1 where x < -a. The L2 penalty on a is
    the optimizer's weight decay. a is kept from 1e-6 on by a clamp that passes the gradient.

    Args:
        bits: 1..8 (signed: 2..8).
        derivative: coarse derivative of the rounding.
        signed: whether negative inputs have levels of their own.
        ceiling: upper end of the float activation that this one replaces (6 for ReLU6), or None.
        learned: False freezes a.
        start: a at the start, > 0; the paper's is 10.

    Attributes:
        clip: a, a 0-dim parameter.

    Source: arXiv:1805.06085.
    """

    def __init__(
        self,
        bits: int,
        derivative: Derivative = "identity",
        *,
        signed: bool = False,
        ceiling: float | None = None,
        learned: bool = True,
        start: float = 10.0,
    ) -> None:
        super().__init__(bits, derivative, signed=signed, ceiling=ceiling)
        high = 2 ** (bits - 1) - 1 if signed else 2**bits - 1
        low = -high if signed else 0
        self.stairs = Stairs(low=low, high=high, first=low, shift=0.5)
        self.clip = nn.Parameter(torch.tensor(start), learned)

    def quantize(self, x: Tensor) -> Tensor:
        """Clipped x on its levels."""
        a = positive(self.clip, _LEAST)
        return pact_ste(
            x, a, stairs=self.stairs, derivative=self.derivative, sharpness=self.sharpness
        )

    @torch.no_grad()
    def start_from(self, mean: float) -> None:
        """Start a at the largest code times the optimal step for this mean square."""
        high = self.stairs.high
        self.clip.fill_(max(high * gaussian_step(high) * mean**0.5, _LEAST))


class DorefaActivation(PactActivation):
    """DoReFa's activation: clip(x, 0, 1) on 2^b levels, nothing learned; signed: clip(x, -1, 1).

    Args:
        bits: 1..8 (signed: 2..8).
        derivative: coarse derivative of the rounding.
        signed: whether negative inputs have levels of their own.
        ceiling: upper end of the float activation that this one replaces (6 for ReLU6), or None.

    Source: arXiv:1606.06160.
    """

    def __init__(
        self,
        bits: int,
        derivative: Derivative = "identity",
        *,
        signed: bool = False,
        ceiling: float | None = None,
    ) -> None:
        super().__init__(bits, derivative, signed=signed, ceiling=ceiling, learned=False, start=1.0)

    def start_from(self, mean: float) -> None:
        """The clip stays at 1."""
