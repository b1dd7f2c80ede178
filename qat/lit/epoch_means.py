"""Epoch means that survive a resume; those of Lightning do not."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


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
        """The means since the last `take`; empty before the first batch."""
        means = {
            name: total / self._count
            for name, total in zip(self._names, self._sums.tolist(), strict=True)
        }
        self._forget()
        return means

    def state_dict(self) -> dict[str, Any]:
        """The running sums as plain values."""
        sums = dict(zip(self._names, self._sums.tolist(), strict=True))
        return {"sums": sums, "count": self._count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from saved sums."""
        self._names = list(state["sums"])
        self._sums = torch.tensor(list(state["sums"].values()), dtype=torch.float64)
        self._count = int(state["count"])
