"""Activation quantizers: what stands where a float activation stood, and the staircase."""

import torch
from torch import Tensor, nn

from qat.errors import SpecError
from qat.functional.gaussian import gaussian_step
from qat.functional.staircase import STEP_MAX, STEP_MIN, staircase_ste
from qat.functional.stairs import relu_stairs, signed_stairs
from qat.functional.ste import estimator
from qat.names import Derivative, StepDerivative


class QuantizedActivation(nn.Module):
    """Base of all activation quantizers: they map to few levels, or act as what they replaced.

    While `enabled` is False (the float warm start) the module is the float network's: a ReLU, or
    the identity if signed.

    Args:
        bits: 1..8 (signed: `lowest_signed`..8).
        derivative: coarse derivative in x, a member of the family in `qat.functional.ste`.
        signed: whether it stands on an input that is not behind a ReLU.
        ceiling: upper end of the float activation that this one replaces (6 for ReLU6), or None.

    Attributes:
        has_zero: whether 0 is a level, so that zero padding adds no value.
        needs_batches: whether it cannot start without having seen inputs.
        sharpness: parameter of a scheduled derivative, a 0-dim buffer; None for the others.

    Raises:
        SpecError: bits out of range, or no such derivative.
    """

    has_zero = True
    needs_batches = False
    lowest_signed = 2
    sharpness: Tensor | None

    def __init__(
        self,
        bits: int,
        derivative: Derivative = "clipped_relu",
        *,
        signed: bool = False,
        ceiling: float | None = None,
    ) -> None:
        super().__init__()
        lowest = self.lowest_signed if signed else 1
        if not lowest <= bits <= 8:
            kind = "signed " if signed else ""
            raise SpecError(f"bits of a {kind}activation must be {lowest}..8; got {bits}")
        self.bits = bits
        self.derivative: Derivative = derivative
        self.signed = signed
        self.ceiling = ceiling
        self.enabled = True
        member = estimator(derivative)
        start = torch.tensor(member.sharpness(0.0))
        # a buffer and not a number, which a compiled network would be compiled anew for
        self.register_buffer("sharpness", start if member.is_scheduled else None)

    def forward(self, input: Tensor) -> Tensor:  # named as nn.ReLU names it
        """Levels for `input` (any shape, floating point); the float activation while disabled."""
        if self.enabled:
            return self.quantize(input)
        return input if self.signed else input.clamp(min=0, max=self.ceiling)

    def set_progress(self, progress: float) -> None:
        """Move a scheduled derivative to this place of the quantized phase, 0 .. 1."""
        if self.sharpness is not None:
            # in place, so that a compiled network sees the same buffer
            self.sharpness.fill_(estimator(self.derivative).sharpness(progress))

    def quantize(self, x: Tensor) -> Tensor:
        """Levels for x, with the coarse derivatives in backward."""
        raise TypeError(f"{type(self).__name__} must define quantize")

    def measure(self, x: Tensor) -> tuple[float, int]:
        """(sum, count) over float inputs x of the quantity whose mean `start_from` wants.

        Here: the squares of the inputs that the levels have to cover (positive ones, or all).
        """
        covered = x.double() if self.signed else x.double().clamp(min=0)
        count = x.numel() if self.signed else int((x > 0).sum())
        return float(covered.square().sum()), count

    def start_from(self, mean: float) -> None:
        """Start what is learned from the mean of `measure` over some batches; nothing here."""

    def extra_repr(self) -> str:
        """Options that distinguish two quantizers."""
        signed = ", signed" if self.signed else ""
        return f"{self.bits} bits{signed}, {self.derivative}"


class ActivationQuantizer(QuantizedActivation):
    """Quantized ReLU: alpha * clip(ceil(x / alpha), 0, 2^bits - 1) with a coarse derivative.

    Stands where the ReLU stood. `signed=True` is for inputs that are not behind a ReLU: nearest
    codes -(2^(bits-1) - 1) .. 2^(bits-1) - 1.

    Args:
        bits: 1..8 (signed: 2..8).
        derivative: coarse derivative in x, see `qat.functional.ste`.
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
        super().__init__(bits, derivative, signed=signed, ceiling=ceiling)
        self.step_derivative: StepDerivative = step_derivative
        self.stairs = signed_stairs(bits) if signed else relu_stairs(bits)
        self.step = nn.Parameter(torch.tensor(gaussian_step(self.stairs.high)), learned)

    def quantize(self, x: Tensor) -> Tensor:
        """Staircase of x."""
        return staircase_ste(
            x,
            self.step,
            stairs=self.stairs,
            derivative=self.derivative,
            step_derivative=self.step_derivative,
            sharpness=self.sharpness,
        )

    def start_from(self, mean: float) -> None:
        """Start alpha from the mean square of the inputs."""
        self.start_step(mean**0.5)

    @torch.no_grad()
    def start_step(self, deviation: float) -> None:
        """Set alpha to the optimal step for (half-)normal inputs of this standard deviation.

        alpha = deviation * gaussian_step(largest code), kept inside [1e-3, 5].
        """
        start = deviation * gaussian_step(self.stairs.high)
        self.step.fill_(min(max(start, STEP_MIN), STEP_MAX))

    def extra_repr(self) -> str:
        """Options that distinguish two quantizers."""
        return f"{super().extra_repr()}, {self.step_derivative}"
