"""Integer form of an activation quantizer: which codes, at which step, where they jump."""

from dataclasses import dataclass

import torch
from torch import Tensor

from qat.errors import SpecError
from qat.functional.staircase import STEP_MAX, STEP_MIN
from qat.nn.activation import ActivationQuantizer, QuantizedActivation
from qat.nn.learned_clip import LsqActivation, PactActivation
from qat.nn.sign_activation import SignActivation

_LEAST = 1e-6


@dataclass(frozen=True, slots=True)
class CodeRule:
    """Value = step * code, code = clip(ceil(x / step - shift), low, high) or the sign of x - shift.

    Attributes:
        step: float32 value of the step, > 0.
        low: smallest code.
        high: largest code.
        shift: float64, (): 0 for ceil, 1/2 for the nearest; or (C,) of a sign: minus its shift.
        is_sign: whether the codes are -1 and 1, 1 from x / step - shift >= 0 on.
    """

    step: float
    low: int
    high: int
    shift: Tensor
    is_sign: bool = False

    @property
    def peak(self) -> int:
        """Largest |code|."""
        return max(abs(self.low), abs(self.high))


def code_rule(quantizer: QuantizedActivation, path: str) -> CodeRule:
    """The rule of a quantizer.

    Raises:
        SpecError: a kind that is not known here.
    """
    if isinstance(quantizer, SignActivation):
        shift = torch.zeros(()) if quantizer.shift is None else -quantizer.shift.detach().cpu()
        return CodeRule(1.0, -1, 1, shift.double(), is_sign=True)
    if isinstance(quantizer, ActivationQuantizer):
        step = quantizer.step.detach().float().clamp(STEP_MIN, STEP_MAX)
    elif isinstance(quantizer, LsqActivation):
        step = quantizer.scale.detach().float().clamp(min=_LEAST)
    elif isinstance(quantizer, PactActivation):
        step = quantizer.clip.detach().float().clamp(min=_LEAST) / quantizer.stairs.high
    else:
        raise SpecError(
            f"the activation {path} ({type(quantizer).__name__}) cannot be exported; use kind "
            "staircase, sign, lsq, pact or dorefa"
        )
    stairs = quantizer.stairs
    shift = torch.tensor(stairs.shift, dtype=torch.float64)
    return CodeRule(float(step), stairs.low, stairs.high, shift)
