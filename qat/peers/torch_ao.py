"""torch.ao.quantization: FakeQuantize of 4 bits in the qat layers and behind the ReLUs."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.ao.nn import qat
from torch.ao.quantization import (
    FakeQuantize,
    MovingAverageMinMaxObserver,
    QConfig,
    disable_observer,
    enable_observer,
)
from torch.optim import Optimizer

from qat.peers.peer import Peer, convertible, replace_module


class TorchAo(Peer):
    """Moving-average ranges, rounding with the identity inside them and zero outside.

    Weights are integers -8..7 times max|w| / 7.5, activations 0..15 times max / 15, where max is
    the moving average (0.01 a step, the package's own) of a tensor's largest value. The observers
    also run in evaluation mode; `judged` stops them, or validation images would move the ranges.
    """

    package = "torch"

    def __init__(self) -> None:
        super().__init__(weight_bits=4, activation_bits=4)

    def convert(self, net: nn.Module, start_batches: int) -> None:
        """See Peer; the ranges start from the first batch, whatever `start_batches` is."""
        config = _qconfig()
        kinds: dict[type[nn.Module], Any] = {nn.Conv2d: qat.Conv2d, nn.Linear: qat.Linear}
        for name, module in convertible(net).items():
            if isinstance(module, nn.ReLU):
                replace_module(net, name, nn.Sequential(module, config.activation()))
            else:
                module.qconfig = config  # where the package looks for it
                replace_module(net, name, kinds[type(module)].from_float(module))

    @contextmanager
    def judged(self, net: nn.Module, optimizer: Optimizer) -> Iterator[None]:
        """Inside, no range moves."""
        net.apply(disable_observer)
        try:
            yield
        finally:
            net.apply(enable_observer)

    def activations(self, net: nn.Module) -> dict[str, nn.Module]:
        """The fake quantizers behind the ReLUs."""
        return {
            name: module
            for name, module in net.named_modules()
            if isinstance(module, FakeQuantize) and not name.endswith("weight_fake_quant")
        }

    def _used(self, layer: nn.Module) -> Tensor:
        used: Tensor = layer.weight_fake_quant(layer.weight)  # type: ignore[operator]
        return used.detach()


def _qconfig() -> Any:
    make: Any = FakeQuantize.with_args  # untyped, as QConfig is
    weight = make(
        observer=MovingAverageMinMaxObserver,
        quant_min=-8,
        quant_max=7,
        dtype=torch.qint8,
        qscheme=torch.per_tensor_symmetric,
        reduce_range=False,
    )
    activation = make(
        observer=MovingAverageMinMaxObserver,
        quant_min=0,
        quant_max=15,
        dtype=torch.quint8,
        qscheme=torch.per_tensor_affine,
        reduce_range=False,
    )
    config: Any = QConfig
    return config(activation=activation, weight=weight)
