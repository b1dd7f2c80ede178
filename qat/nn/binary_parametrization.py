"""In-graph weight quantizers of one bit: ReSTE and BiPer."""

import torch
from torch import Tensor

from qat.functional.gradient import scaled_gradient
from qat.functional.sign import sign_ste
from qat.nn.parametrization import DorefaWeight, LearnedScale, LsqWeight, WeightParametrization
from qat.spec.quant import WeightMethod

_OMEGA = 20.0  # the authors' frequency


class ResteWeight(WeightParametrization):
    """ReSTE weights: Q(w) = sign(w) mean|w|, backward by the power function of exponent 1 / o.

    The slope is that of `qat.functional.ste.power` at v = w / mean|w|, and the mean passes no
    gradient: d Q / d w = slope(v). Dividing by the mean is ours: the power function has its secant
    on |v| <= 0.1 and its end at 1.5, numbers for weights of size 1, and a layer's weights are of
    any size. o = 1 is then the clipped identity on |w| <= 1.5 mean|w|.

    Args:
        bits: 1.
        granularity: tensor (the paper's) or channel.
        derivative: coarse derivative of the sign at v; None is power.

    Source: arXiv:2308.06689.
    """

    kind = "reste"
    own_derivative = "power"

    def quantize(self, w: Tensor, *learned: Tensor) -> tuple[Tensor, Tensor]:
        """Signs and mean|w|."""
        return self._signs(w)


class BiperWeight(LearnedScale):
    """BiPer weights: Q(w) = s sign(sin(om w)), om = 20, the sign with the identity behind it.

        d Q / d w = s om cos(om w),   d Q / d s = sign(sin(om w)) / sqrt(N)

    s is learned and starts at mean|w|. Unlike the authors' code, whose scale per channel follows
    the convolution, it belongs to the weight; its gradient is divided by sqrt(N) as LSQ's is, N the
    weights of a scale, for the sum over a whole layer makes a common learning rate diverge. Their
    first stage, sin(om w) without the sign, is not offered.

    Args:
        bits: 1.
        granularity: tensor or channel (the authors').
        derivative: coarse derivative of the sign at sin(om w); None is the identity.

    Source: arXiv:2404.01278.
    """

    kind = "biper"

    def quantize(self, w: Tensor, *learned: Tensor) -> tuple[Tensor, Tensor]:
        """Signs of the sine, and s."""
        (scale,) = learned or (self.scale,)
        wave = torch.sin(_OMEGA * w)
        signs = sign_ste(wave, self.derivative, sharpness=self.sharpness)
        s = scaled_gradient(scale, (scale.numel() / w.numel()) ** 0.5)
        return signs, s.to(w.dtype)

    @torch.no_grad()
    def latent(self, codes: Tensor, scale: Tensor) -> Tensor:
        """The nearest weights at which the sine is 1 or -1."""
        return codes.float() * (torch.pi / (2 * _OMEGA))


METHODS: dict[WeightMethod, type[WeightParametrization]] = {
    "lsq": LsqWeight,
    "dorefa": DorefaWeight,
    "reste": ResteWeight,
    "biper": BiperWeight,
}
