"""Brevitas: QuantConv2d, QuantLinear and QuantReLU, one scale per tensor."""

from typing import Any, cast

import torch
from brevitas.inject.enum import (  # type: ignore[import-untyped, import-not-found, unused-ignore]
    BitWidthImplType,
    FloatToIntImplType,
    QuantType,
    RestrictValueType,
    ScalingImplType,
    ScalingPerOutputType,
    StatsOp,
)
from brevitas.nn import (  # type: ignore[import-untyped, import-not-found, unused-ignore]
    QuantConv2d,
    QuantLinear,
    QuantReLU,
)
from brevitas.quant import (  # type: ignore[import-untyped, import-not-found, unused-ignore]
    Int8WeightPerTensorFloat,
    Uint8ActPerTensorFloat,
)
from brevitas.quant.solver import (  # type: ignore[import-untyped, import-not-found, unused-ignore]
    WeightQuantSolver,
)
from torch import Tensor, nn

from qat.peers.peer import Peer, convertible, replace_module


class MeanBinaryWeight(WeightQuantSolver):  # type: ignore[misc]  # the package ships no types
    """+-mean|w| per tensor: composed of the package's parts, whose own has the constant 0.1."""

    quant_type = QuantType.BINARY
    bit_width_impl_type = BitWidthImplType.CONST
    bit_width = 1
    scaling_impl_type = ScalingImplType.STATS
    scaling_stats_op = StatsOp.AVE
    scaling_per_output_type = ScalingPerOutputType.TENSOR
    restrict_scaling_type = RestrictValueType.FP
    float_to_int_impl_type = FloatToIntImplType.ROUND
    narrow_range = True
    signed = True


class Brevitas(Peer):
    """Quantizers in the graph: identity STE on weights, learned scale of the activations.

    Weights of 1 bit are +-mean|w|, of 4 bits integers -7..7 times max|w| / 7; gradients flow
    through both scales. Activations are 0..15 times a scale that starts from the 99.999th
    percentile of the first training batches and is then learned at the full learning rate.

    Args:
        weight_bits: 1, or 2..8.
    """

    package = "brevitas"

    def __init__(self, weight_bits: int) -> None:
        super().__init__(weight_bits, activation_bits=4)

    def convert(self, net: nn.Module, start_batches: int) -> None:
        """See Peer; `start_batches` is the package's collect_stats_steps (its own: 300)."""
        for name, module in convertible(net).items():
            replace_module(net, name, self._counterpart(module, start_batches))

    def _counterpart(self, module: nn.Module, start_batches: int) -> nn.Module:
        if isinstance(module, nn.ReLU):
            act: nn.Module = QuantReLU(
                act_quant=Uint8ActPerTensorFloat,
                bit_width=self.activation_bits,
                collect_stats_steps=start_batches,
            )
            return act
        layer = _conv(module, self._weight()) if isinstance(module, nn.Conv2d) else None
        if layer is None:
            layer = _linear(cast(nn.Linear, module), self._weight())
        with torch.no_grad():  # in place: the scale watches the layer's own parameter
            for new, old in zip(layer.parameters(), module.parameters(), strict=True):
                new.copy_(old)
        return layer

    def _weight(self) -> dict[str, Any]:
        if self.weight_bits == 1:
            return {"weight_quant": MeanBinaryWeight}
        return {"weight_quant": Int8WeightPerTensorFloat, "weight_bit_width": self.weight_bits}

    def activations(self, net: nn.Module) -> dict[str, nn.Module]:
        """The quantized ReLUs."""
        return {name: m for name, m in net.named_modules() if isinstance(m, QuantReLU)}

    def _used(self, layer: nn.Module) -> Tensor:
        value: Tensor = layer.quant_weight().value  # type: ignore[operator]
        return value.detach()


def _conv(module: nn.Conv2d, weight: dict[str, Any]) -> nn.Module:
    layer: nn.Module = QuantConv2d(
        module.in_channels,
        module.out_channels,
        module.kernel_size,
        stride=module.stride,
        padding=module.padding,
        dilation=module.dilation,
        groups=module.groups,
        bias=module.bias is not None,
        **weight,
    )
    return layer


def _linear(module: nn.Linear, weight: dict[str, Any]) -> nn.Module:
    has_bias = module.bias is not None
    layer: nn.Module = QuantLinear(module.in_features, module.out_features, bias=has_bias, **weight)
    return layer
