"""Epoch means, over all processes, that survive a resume; those of Lightning do not."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from qat.ranks import group as ranks


class EpochMeans:
    """Means over the images of an epoch, summed where the values are, without a synchronisation."""

    def __init__(self) -> None:
        self._forget()

    def _forget(self) -> None:
        self._names: list[str] = []
        self._sums = torch.zeros(0, dtype=torch.float64)
        self._count = 0

    @torch.no_grad()
    def add(self, values: Mapping[str, Tensor], count: int) -> None:
        """Add the means of one batch.

        Args:
            values: name -> scalar, the mean over the batch; the same names in all of an epoch.
            count: images in the batch.
        """
        batch = torch.stack([value.detach().double() for value in values.values()]) * count
        self._names = list(values)
        self._sums = batch if self._count == 0 else self._sums.to(batch.device) + batch
        self._count += count

    def take(self) -> dict[str, float]:
        """The means since the last `take`, over all processes; empty before the first batch."""
        count = torch.tensor([float(self._count)], dtype=torch.float64)
        *sums, images = ranks.total(torch.cat([self._sums.cpu(), count])).tolist()
        means = {name: total / images for name, total in zip(self._names, sums, strict=True)}
        self._forget()
        return means

    def state_dict(self) -> dict[str, Any]:
        """The running sums as plain values, of this process alone."""
        sums = dict(zip(self._names, self._sums.tolist(), strict=True))
        return {"sums": sums, "count": self._count}

    def state_of_all(self) -> dict[str, Any]:
        """The running sums of all processes, for any number of them to go on from; all call it."""
        states = ranks.gathered(self.state_dict())
        if len(states) == 1:
            return states[0]
        sums = {name: sum(s["sums"][name] for s in states) for name in self._names}
        return {"sums": sums, "count": sum(s["count"] for s in states), "ranks": states}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from saved sums: as many processes as then each from its own, bit for bit."""
        of_ranks = state.get("ranks", [state])
        if len(of_ranks) == ranks.size():
            state = of_ranks[ranks.rank()]
        elif not ranks.is_first():  # who takes them all
            state = {"sums": dict.fromkeys(state["sums"], 0.0), "count": 0}
        self._names = list(state["sums"])
        self._sums = torch.tensor(list(state["sums"].values()), dtype=torch.float64)
        self._count = int(state["count"])
