"""Peer interface: how it quantizes a float network, and what it is judged on."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from qat.errors import SpecError
from qat.quantize.weights import LAYER_TYPES

_CONVERTIBLE = (nn.Conv2d, nn.Linear, nn.ReLU)


class Peer:
    """A way to train on few levels; this one changes nothing, the control of the loop.

    Args:
        weight_bits: of every conv and linear weight, 32 for float.
        activation_bits: behind every ReLU, 32 for float.

    Attributes:
        package: whose method it is, as on the package index; "" for none.
        numbers: its own options, for the records.
    """

    package = ""

    def __init__(self, weight_bits: int = 32, activation_bits: int = 32) -> None:
        self.weight_bits = weight_bits
        self.activation_bits = activation_bits
        self.numbers: Mapping[str, Any] = {}

    def convert(self, net: nn.Module, start_batches: int) -> None:
        """Put the quantizers into a float network, in place; its weights keep their values.

        Args:
            net: float network.
            start_batches: training batches that measure the start of learned scales.

        Raises:
            SpecError: a layer of it has no counterpart in the package.
        """

    def wrap(self, base: Optimizer, steps: int) -> Optimizer:
        """The optimizer of the quantized phase, around a fresh `base`, for `steps` steps."""
        return base

    def theta(self, optimizer: Optimizer) -> float:
        """How hard the weights of the last forward pass were: 0 float .. 1 on their levels."""
        return 1.0 if self.weight_bits < 32 else 0.0

    @contextmanager
    def judged(self, net: nn.Module, optimizer: Optimizer) -> Iterator[None]:
        """Inside, the network computes with hard weights and measures nothing."""
        yield

    def activations(self, net: nn.Module) -> dict[str, nn.Module]:
        """Dotted name -> module whose output lies on few levels."""
        return {}

    def weights(self, net: nn.Module) -> dict[str, Tensor]:
        """Dotted name -> what a conv or linear layer multiplies with; call it inside `judged`."""
        with torch.no_grad():
            return {name: self._used(layer) for name, layer in layers(net).items()}

    def _used(self, layer: nn.Module) -> Tensor:
        return cast(Tensor, layer.weight).detach()


def layers(net: nn.Module) -> dict[str, nn.Module]:
    """Dotted name -> conv or linear layer, the packages' own ones among them."""
    return {name: module for name, module in net.named_modules() if isinstance(module, LAYER_TYPES)}


def convertible(net: nn.Module) -> dict[str, nn.Module]:
    """Dotted name -> module that a package has to replace: Conv2d, Linear, ReLU.

    Raises:
        SpecError: one is of a kind that the packages have no counterpart of.
    """
    for name, module in net.named_modules():
        if isinstance(module, (*LAYER_TYPES, nn.ReLU6)) and type(module) not in _CONVERTIBLE:
            raise SpecError(
                f"{name} is a {type(module).__name__}, peers replace Conv2d, Linear and ReLU only; "
                "use model=resnet20 or model=vgg11"
            )
    return {name: m for name, m in net.named_modules() if type(m) in _CONVERTIBLE}


def replace_module(net: nn.Module, name: str, module: nn.Module) -> None:
    """Put `module` where the network has `name`."""
    parent, _, child = name.rpartition(".")
    setattr(net.get_submodule(parent), child, module)
