"""PARQ and BinaryRelax of torchao: the weights' update alone, activations stay float."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import Optimizer
from torchao.prototype.parq import (  # type: ignore[import-untyped, import-not-found, unused-ignore]
    LSBQuantizer,
    ProxBinaryRelax,
    ProxHardQuant,
    ProxPARQ,
    QuantOptimizer,
)

from qat.peers.peer import Peer

_HARD_FROM = 0.75  # of the quantized phase, as our binary_relax; the PARQ paper's 150 of 200 epochs
_STEEPNESS = 10.0  # the package's own
_PERIOD = 10  # steps between two updates of the levels, the package's own


class Parq(Peer):
    """Binary weights +-mean|w| per tensor by `QuantOptimizer` with one of its proximal maps.

    The first step starts from the float weights: the package shows its levels only after it.
    The step is called without a closure, because the package restores the latent weights before
    it would call one. On steps that update the levels the package writes w - (w - level), which
    differs from the level by a rounding; judged are the levels themselves.

    Args:
        prox_map: `binary_relax` blends linearly from 0 to 1, `parq` is piecewise affine.

    Source: arXiv:2503.15748, torchao.prototype.parq.
    """

    package = "torchao"

    def __init__(self, prox_map: Literal["binary_relax", "parq"]) -> None:
        super().__init__(weight_bits=1)
        self._map = prox_map
        own = {"steepness": _STEEPNESS} if prox_map == "parq" else {}
        self.numbers = {"hard_from": _HARD_FROM, "quant_period": _PERIOD, **own}

    def wrap(self, base: Optimizer, steps: int) -> Optimizer:
        """The package's optimizer; the group "weight" holds every conv and linear weight."""
        for group in base.param_groups:
            if group["group"] == "weight":
                group["quant_bits"] = self.weight_bits
        end = max(1, round(_HARD_FROM * steps))
        prox = ProxBinaryRelax(0, end) if self._map == "binary_relax" else ProxPARQ(0, end)
        wrapped: Optimizer = QuantOptimizer(base, LSBQuantizer(), prox, quant_period=_PERIOD)
        return wrapped

    def theta(self, optimizer: Any) -> float:
        """The blend of BinaryRelax; for PARQ 1 - inverse slope: 0 a clip, 1 the nearest level."""
        taken: int = optimizer.num_steps - 1
        end: int = optimizer.prox_map.anneal_end
        if taken >= end:
            return 1.0
        if self._map == "binary_relax":
            return max(0.0, taken / end)
        (group,) = optimizer.regularized_param_groups()
        return 1.0 - float(group["inv_slope"])

    @contextmanager
    def judged(self, net: nn.Module, optimizer: Any) -> Iterator[None]:
        """Inside, the parameters hold the level nearest to the latent weight."""
        (group,) = optimizer.regularized_param_groups()
        shown = [p.detach().clone() for p in group["params"]]
        with torch.no_grad():
            for p in group["params"]:
                state = optimizer.state[p]
                p.copy_(state["latent"])
                ProxHardQuant().apply_(p, None, state["quants"], 0)
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(group["params"], shown)
