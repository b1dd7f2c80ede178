"""Weight parametrizations, quantizers inside the graph: LSQ, DoReFa, ReSTE, BiPer.

They are parametrizations (`torch.nn.utils.parametrize`) of a layer's weight: the network keeps the
float weight w as the parameter, the layer sees Q(w), and autograd goes through Q with a coarse
derivative for its rounding. The base optimizer alone moves w and what is learned besides. Codes and
scale come from the same arithmetic as the forward pass, so that Q(w) == decode(*encode(w)) bitwise.
"""

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from qat.errors import SpecError
from qat.functional.coded import coded, keeps_codes
from qat.functional.gradient import positive, scaled_gradient
from qat.functional.kernels import has_no_versions, wide
from qat.functional.levels import Levels
from qat.functional.lsq import lsq_codes, lsq_ste
from qat.functional.recomputed import recomputed
from qat.functional.sign import round_ste, sign_ste
from qat.functional.stairs import Stairs
from qat.functional.ste import estimator
from qat.functional.weight_codes import hold_scale
from qat.names import Derivative
from qat.spec.quant import METHOD_BITS, Granularity, WeightMethod

# a learned scale below this has no inverse worth taking
_SCALE_MIN = 1e-8


class WeightParametrization(nn.Module):
    """Base of the in-graph weight quantizers: Q(w) = value(code) * scale.

    While `enabled` is False (the float warm start) Q(w) is w itself.

    Args:
        bits: bit width, see `METHOD_BITS`.
        granularity: one scale per "tensor" or per output "channel" (axis 0).
        derivative: coarse derivative of the rounding; None for the method's own.

    Attributes:
        kind: name of the method.
        sharpness: parameter of a scheduled derivative, a 0-dim buffer; None for the others.

    Raises:
        SpecError: the method has no such bit width or granularity.
    """

    kind: ClassVar[WeightMethod]
    own_derivative: ClassVar[Derivative] = "identity"
    granularities: ClassVar[tuple[Granularity, ...]] = ("tensor", "channel")
    sharpness: Tensor | None

    def __init__(
        self,
        bits: int,
        granularity: Granularity = "tensor",
        *,
        derivative: Derivative | None = None,
    ) -> None:
        super().__init__()
        if bits not in METHOD_BITS[self.kind]:
            allowed = ", ".join(str(b) for b in METHOD_BITS[self.kind])
            raise SpecError(f"{self.kind} needs bits in {allowed}; got {bits!r}")
        if granularity not in self.granularities:
            offered = " or ".join(self.granularities)
            raise SpecError(f"granularity of {self.kind} must be {offered}, got {granularity!r}")
        self.bits = bits
        self.granularity: Granularity = granularity
        self.derivative: Derivative = derivative or self.own_derivative
        self.enabled = True
        member = estimator(self.derivative)
        start = torch.tensor(member.sharpness(0.0)) if member.is_scheduled else None
        self.register_buffer("sharpness", start)

    def forward(self, w: Tensor) -> Tensor:
        """Q(w) of w's shape and dtype with its coarse gradient; w while disabled."""
        if not self.enabled:
            return w
        if has_no_versions():
            with torch.inference_mode(False), torch.no_grad():
                return self.forward(w)  # not by self(w), whose hooks are called already
        learned = tuple(self.parameters(recurse=False))
        y, values, scale = recomputed(self._product, w, *learned)
        if not keeps_codes(w):
            return y
        if scale.numel() != 1:
            hold_scale(y, scale)
            return y
        low, stride = self.levels[0], self.levels[1] - self.levels[0]
        index = values.sub(low).div_(stride).to(torch.uint8)
        levels = Levels(scale.reshape(()), int(low), int(low), int(self.levels[-1]), int(stride))
        return coded(y, index, levels)

    def _product(self, w: Tensor, *learned: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Q(w), and the values and the scale that it is made of, without gradients."""
        values, scale = self.quantize(w.to(wide(w.dtype)), *learned)
        return (values * scale).to(w.dtype), values.detach(), scale.detach()

    def start(self, w: Tensor) -> None:
        """Start what is learned from a float weight; here only check that it has a scale.

        Raises:
            SpecError: w is empty, or has no axis to take channels from.
        """
        self._scale_shape(w)

    def set_progress(self, progress: float) -> None:
        """Move a scheduled derivative to this place of the quantized phase, 0 .. 1."""
        if self.sharpness is not None:
            # in place, so that a compiled network sees the same buffer
            self.sharpness.fill_(estimator(self.derivative).sharpness(progress))

    def quantize(self, w: Tensor, *learned: Tensor) -> tuple[Tensor, Tensor]:
        """Values in units of the scale (w's shape) and scale (broadcasts), both with gradients.

        Args:
            w: float32 at least.
            learned: in place of the module's own parameters.
        """
        raise TypeError(f"{type(self).__name__} must define quantize")

    @property
    def levels(self) -> tuple[float, ...]:
        """The values in units of the scale, rising."""
        return (-1.0, 1.0)

    @torch.no_grad()
    def encode(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """Codes int8 of w's shape, scale float32 of shape () or (O, 1, ..., 1)."""
        values, scale = self.quantize(w.detach().float())
        return self._to_codes(values).to(torch.int8), scale.reshape(self._scale_shape(w))

    @torch.no_grad()
    def decode(self, codes: Tensor, scale: Tensor, *, dtype: torch.dtype = torch.float32) -> Tensor:
        """Values of codes and scale as `encode` gives them, computed in float32, in `dtype`."""
        return self._to_values(codes.float()).mul_(scale).to(dtype)

    @torch.no_grad()
    def latent(self, codes: Tensor, scale: Tensor) -> Tensor:
        """A float weight in float32 that has these codes, for training to go on from."""
        return self.decode(codes, scale)

    def extra_repr(self) -> str:
        """Options that distinguish two quantizers."""
        return f"{self.kind}, {self.bits} bits, per {self.granularity}, {self.derivative}"

    def _to_codes(self, values: Tensor) -> Tensor:
        return values

    def _to_values(self, codes: Tensor) -> Tensor:
        return codes

    def _scale_shape(self, w: Tensor) -> tuple[int, ...]:
        if w.numel() == 0:
            raise SpecError(f"a weight of shape {tuple(w.shape)} is empty; leave it float")
        if self.granularity == "tensor":
            return ()
        if w.ndim == 0:
            raise SpecError("a scalar weight has no output channels; use granularity=tensor")
        return (w.shape[0], *(1 for _ in w.shape[1:]))

    def _signs(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """sign(w) and mean|w|, so that d Q / d w is the slope at v = w / mean|w|."""
        scale = self._mean_size(w.detach())
        # a group of zeros has scale 0, whatever its signs
        v = w / torch.where(scale > 0, scale, torch.ones_like(scale))
        return sign_ste(v, self.derivative, sharpness=self.sharpness), scale

    def _mean_size(self, w: Tensor) -> Tensor:
        """Mean |w| of each scale group, of the scale's shape."""
        shape = self._scale_shape(w)
        return w.abs().reshape(math.prod(shape), -1).mean(dim=1).reshape(shape)


class LearnedScale(WeightParametrization):
    """In-graph weight quantizers that learn their scale s.

    Attributes:
        scale: s, a parameter of shape () or (O, 1, ..., 1) once `start` has seen a weight.
    """

    scale: Tensor

    def __init__(
        self,
        bits: int,
        granularity: Granularity = "tensor",
        *,
        derivative: Derivative | None = None,
    ) -> None:
        super().__init__(bits, granularity, derivative=derivative)
        self.scale = nn.Parameter(torch.ones(()))

    @torch.no_grad()
    def start(self, w: Tensor) -> None:
        """Set s from the mean |w| of each scale group."""
        start = self.first_scale(self._mean_size(w.detach().float()))
        if self.scale.shape == start.shape:
            self.scale.copy_(start)
        else:
            self.scale = nn.Parameter(start)

    def first_scale(self, mean_size: Tensor) -> Tensor:
        """The start of s for this mean |w|: the mean itself."""
        return mean_size


class LsqWeight(LearnedScale):
    """Learned step size: Q(w) = s round(clip(w / s, -Qn, Qp)), Qn = 2^(b-1), Qp = 2^(b-1) - 1.

    Gradients, with v = w / s and the identity for the rounding:

        d Q / d w = 1 if -Qn < v < Qp else 0
        d Q / d s = round(v) - v inside, -Qn below, Qp above; times 1 / sqrt(N Qp)

    N counts the weights of a scale. s starts at 2 mean|w| / sqrt(Qp). Unlike the paper, s is kept
    from 1e-8 on by a clamp that passes the gradient, so that a step across zero does not end a run.

    Args:
        bits: 2..8.
        granularity: tensor (the paper's) or channel.
        derivative: coarse derivative of the rounding inside the clip; None is the identity.

    Source: arXiv:1902.08153.
    """

    kind = "lsq"

    @property
    def stairs(self) -> Stairs:
        """The codes -Qn .. Qp, nearest."""
        half = 2 ** (self.bits - 1)
        return Stairs(low=-half, high=half - 1, first=-half, shift=0.5)

    def first_scale(self, mean_size: Tensor) -> Tensor:
        """2 mean|w| / sqrt(Qp)."""
        start: Tensor = mean_size * 2 / self.stairs.high**0.5
        return start.clamp(min=_SCALE_MIN)

    def forward(self, w: Tensor) -> Tensor:
        """Q(w) of w's shape and dtype with its coarse gradient; w while disabled."""
        if not self.enabled:
            return w
        factor = (self.scale.numel() / (w.numel() * self.stairs.high)) ** 0.5
        s = positive(scaled_gradient(self.scale, factor), _SCALE_MIN)
        y = lsq_ste(w, s, stairs=self.stairs, derivative=self.derivative, sharpness=self.sharpness)
        if s.numel() != 1 and self.bits < 8:  # -128 has no code of its own
            hold_scale(y, s)
        return y

    def quantize(self, w: Tensor, *learned: Tensor) -> tuple[Tensor, Tensor]:
        """Codes and s, as the forward pass has them; for encoding, without their gradients."""
        s = self.scale.detach().clamp(min=_SCALE_MIN).to(w.dtype)
        return lsq_codes(w.detach() / s, self.stairs), s

    @property
    def levels(self) -> tuple[float, ...]:
        """The codes -Qn .. Qp."""
        return tuple(float(code) for code in range(self.stairs.low, self.stairs.high + 1))


class DorefaWeight(WeightParametrization):
    """DoReFa weights: Q(w) = 2 round(n r) / n - 1, r = tanh(w) / (2 max|tanh(w)|) + 1/2.

    n = 2^b - 1 for b > 1; the gradient goes through tanh and the maximum as it is, and through the
    rounding with the coarse derivative. One bit: Q(w) = sign(w) mean|w|, the mean without gradient.

    Codes of b > 1 are round(n r) - 2^(b-1), so that eight bits fit; levels are the odd integers
    -n .. n in units of 1 / n.

    Args:
        bits: 1..8.
        granularity: tensor; the normalisation is the layer's.
        derivative: coarse derivative of the rounding; None is the identity.

    Source: arXiv:1606.06160.
    """

    kind = "dorefa"
    granularities = ("tensor",)

    @property
    def stairs(self) -> Stairs:
        """The codes 0 .. n of r, nearest."""
        return Stairs(low=0, high=2**self.bits - 1, first=0, shift=0.5)

    def quantize(self, w: Tensor, *learned: Tensor) -> tuple[Tensor, Tensor]:
        """Odd integers and 1 / n, or signs and mean|w|."""
        if self.bits == 1:
            return self._signs(w)
        n = self.stairs.high
        t = torch.tanh(w)
        largest = t.abs().amax()
        # all weights zero: r = 1/2, and no division by 0
        r = t / (2 * torch.where(largest > 0, largest, torch.ones_like(largest))) + 0.5
        codes = round_ste(r * n, self.stairs, self.derivative, sharpness=self.sharpness)
        return 2 * codes - n, torch.full((), 1 / n, dtype=w.dtype, device=w.device)

    @property
    def levels(self) -> tuple[float, ...]:
        """Signs, or the odd integers -n .. n."""
        n = self.stairs.high
        return tuple(float(level) for level in range(-n, n + 1, 2))

    @torch.no_grad()
    def latent(self, codes: Tensor, scale: Tensor) -> Tensor:
        """The hard weight, or atanh of 0.9 times the levels, whose largest is always in use."""
        hard = self.decode(codes, scale)
        return hard if self.bits == 1 else torch.atanh(0.9 * hard)

    def _to_codes(self, values: Tensor) -> Tensor:
        if self.bits == 1:
            return values
        half: int = 2 ** (self.bits - 1)
        return (values + self.stairs.high) / 2 - half

    def _to_values(self, codes: Tensor) -> Tensor:
        return codes if self.bits == 1 else codes * 2 + 1
