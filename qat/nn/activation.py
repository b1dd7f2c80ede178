"""The activation quantizer: a staircase with a learned step."""

import torch
from torch import Tensor, nn

from qat.errors import SpecError
from qat.functional.gaussian import gaussian_step
from qat.functional.ste import (
    STEP_MAX,
    STEP_MIN,
    Derivative,
    StepDerivative,
    relu_stairs,
    signed_stairs,
    staircase_ste,
)


class ActivationQuantizer(nn.Module):
    """Quantized ReLU: alpha * clip(ceil(x / alpha), 0, 2^bits - 1) with a coarse derivative.

    Stands where the ReLU stood. `signed=True` is for inputs that are not behind a ReLU: nearest
    codes -(2^(bits-1) - 1) .. 2^(bits-1) - 1. While `enabled` is False the module is the float
    network's: a ReLU, or the identity if signed (the float warm start).

    Args:
        bits: 1..8 (signed: 2..8).
        derivative: coarse derivative in x, see `qat.functional.ste.staircase_ste`.
        step_derivative: coarse derivative in alpha.
        signed: whether negative inputs have levels of their own.
        learned: False freezes alpha, as in arXiv:1903.05662.
        ceiling: upper end of the float activation that this one replaces (6 for ReLU6), or None.

    Attributes:
        step: the papers' alpha, a 0-dim float32 parameter. It starts at the mean-square optimal
            step for half-normal (signed: normal) inputs of deviation 1; `start_step` rescales it.

    Raises:
        SpecError: bits out of range.

    Source: arXiv:1808.05240 (staircase, learned alpha); the start is the fixed point that the
    authors' code approximates, for NEAREST rounding although the forward pass rounds up.
    """

    step: Tensor

    def __init__(
        self,
        bits: int,
        derivative: Derivative = "clipped_relu",
        *,
        step_derivative: StepDerivative = "three_valued",
        signed: bool = False,
        learned: bool = True,
        ceiling: float | None = None,
    ) -> None:
        super().__init__()
        lowest = 2 if signed else 1
        if not lowest <= bits <= 8:
            kind = "signed " if signed else ""
            raise SpecError(f"bits of a {kind}activation must be {lowest}..8; got {bits}")
        self.bits = bits
        self.derivative: Derivative = derivative
        self.step_derivative: StepDerivative = step_derivative
        self.signed = signed
        self.ceiling = ceiling
        self.enabled = True
        self.stairs = signed_stairs(bits) if signed else relu_stairs(bits)
        self.step = nn.Parameter(torch.tensor(gaussian_step(self.stairs.high)), learned)

    def forward(self, x: Tensor) -> Tensor:
        """Staircase of x (any shape, floating point); the float activation while disabled."""
        if not self.enabled:
            return x if self.signed else x.clamp(min=0, max=self.ceiling)
        return staircase_ste(
            x,
            self.step,
            stairs=self.stairs,
            derivative=self.derivative,
            step_derivative=self.step_derivative,
        )

    @torch.no_grad()
    def start_step(self, deviation: float) -> None:
        """Set alpha to the optimal step for (half-)normal inputs of this standard deviation.

        alpha = deviation * gaussian_step(largest code), kept inside [1e-3, 5].
        """
        start = deviation * gaussian_step(self.stairs.high)
        self.step.fill_(min(max(start, STEP_MIN), STEP_MAX))

    def extra_repr(self) -> str:
        """Options that distinguish two quantizers."""
        signed = ", signed" if self.signed else ""
        return f"{self.bits} bits{signed}, {self.derivative}, {self.step_derivative}"
