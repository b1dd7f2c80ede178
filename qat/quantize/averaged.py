"""Averaged weights: an exponential moving average that stays on the grids."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from qat.errors import CheckpointError, SpecError
from qat.optim.together import Projection, copy_all, project


def ema_decay(decay: float, step: int) -> float:
    """Decay of an average at a step, with the usual warm-up.

        d_t = min(decay, (1 + t) / (10 + t))

    Args:
        decay: its limit, in (0, 1).
        step: t, averaged steps before this one.

    >>> ema_decay(0.999, 0), ema_decay(0.999, 90), ema_decay(0.999, 10**6)
    (0.1, 0.91, 0.999)
    """
    return min(decay, (1 + step) / (10 + step))


class AveragedWeights:
    """Exponential moving average (EMA) of what training moves, projected where it is looked at.

        a_0 = w at the start of the quantized phase
        a   <- d_t a + (1 - d_t) w     after every step t, see `ema_decay`
        an evaluation sees Q(a)

    w are the latent weights of what a rule projects, never the forward ones, whose average would
    leave the grid; of everything else (biases, norms, learned steps, in-graph weights, running
    statistics of BatchNorm) the values themselves. What is frozen is not averaged.

    Args:
        net: prepared network.
        decay: limit of d_t, in (0, 1).

    Attributes:
        steps: averaged so far.
        is_shown: whether the network holds the average right now.

    Raises:
        SpecError: the decay is out of range.
    """

    def __init__(self, net: nn.Module, decay: float) -> None:
        if not 0 < decay < 1:
            raise SpecError(f"ema.decay must be above 0 and below 1, got {decay!r}")
        self._net, self._decay = net, decay
        self._values: dict[str, Tensor] = {}
        self.steps = 0
        self.is_shown = False

    @property
    def has_begun(self) -> bool:
        """Whether there is an average to show."""
        return bool(self._values)

    def entries(self, module: nn.Module) -> dict[str, Tensor]:
        """Entries of a module's state dict -> their averages, tied weights under all their names.

        Args:
            module: the network, or one that holds it.
        """
        held: dict[str, Tensor] = dict(self._net.named_buffers())
        held |= self._net.named_parameters()
        by_tensor = {id(held[name]): value for name, value in self._values.items()}
        own = [
            *module.named_parameters(remove_duplicate=False),
            *module.named_buffers(remove_duplicate=False),
        ]
        return {name: by_tensor[id(tensor)] for name, tensor in own if id(tensor) in by_tensor}

    @property
    def values(self) -> Mapping[str, Tensor]:
        """Entries of the network's state dict -> their averages; latent weights, not projected."""
        return self._values

    def forget(self) -> None:
        """Leave the average: what the network holds is what is judged."""
        self._values, self.steps = {}, 0

    def begin(self, latent: Mapping[Tensor, Tensor]) -> None:
        """Start from what the network holds.

        Args:
            latent: projected parameter -> its latent weights.
        """
        moved = self._moved(latent)
        self._values = {name: tensor.detach().clone() for name, tensor in moved.items()}
        self.steps = 0

    @torch.no_grad()
    def update(self, latent: Mapping[Tensor, Tensor]) -> None:
        """Take in the values after a step; see `begin`."""
        moved = self._moved(latent)
        self._come_to(moved)
        averages, values = zip(*((self._values[name], t) for name, t in moved.items()), strict=True)
        torch._foreach_lerp_(averages, values, 1 - ema_decay(self._decay, self.steps))
        self.steps += 1

    def _moved(self, latent: Mapping[Tensor, Tensor]) -> dict[str, Tensor]:
        """What is averaged, by name in the state dict."""
        kept = self._net.state_dict().keys()
        parameters = {
            name: latent.get(p, p.detach())
            for name, p in self._net.named_parameters()
            if p.requires_grad
        }
        buffers = dict(self._net.named_buffers())
        moved = parameters | {name: buffer for name, buffer in buffers.items() if name in kept}
        return {name: tensor for name, tensor in moved.items() if tensor.is_floating_point()}

    def _come_to(self, moved: Mapping[str, Tensor]) -> None:
        """Move a loaded average to where the network is."""
        for name, tensor in moved.items():
            if self._values[name].device != tensor.device:
                self._values[name] = self._values[name].to(tensor.device)

    @torch.no_grad()
    def settle(self) -> None:
        """Put the average into the network for good, latent weights as they are; and forget it."""
        copy_all(self._targets(), self._values.values())
        self.forget()

    def _targets(self) -> list[Tensor]:
        held: dict[str, Tensor] = dict(self._net.named_buffers())
        held |= self._net.named_parameters()
        return [held[name] for name in self._values]

    @contextmanager
    def shown(self, projections: Mapping[Tensor, Projection]) -> Iterator[None]:
        """Inside, the network holds the average, with projected weights on their grids.

        Args:
            projections: parameter -> projection of its latent weights.
        """
        targets = self._targets()
        before = [tensor.detach().clone() for tensor in targets]
        self.is_shown = True
        try:
            with torch.no_grad():
                copy_all(targets, self._values.values())
                pairs = zip(targets, self._values.values(), strict=True)
                project({p: (projections[p], a.to(p.device)) for p, a in pairs if p in projections})
            yield
        finally:
            self.is_shown = False
            with torch.no_grad():
                copy_all(targets, before)

    def state_dict(self) -> dict[str, Any]:
        """The average, tied weights under all their names, and its steps."""
        return {"steps": self.steps, "values": self.entries(self._net)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict()`.

        Raises:
            CheckpointError: it is of another network.
        """
        given, expected = state["values"], self._moved({}) if state["values"] else {}
        shapes = {name: tensor.shape for name, tensor in expected.items()}
        if {name: given[name].shape for name in expected if name in given} != shapes:
            raise CheckpointError("the average of the state is of another network; begin anew")
        self._values = {name: given[name] for name in expected}
        self.steps = int(state["steps"])
