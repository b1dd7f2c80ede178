"""Raw images with their labels, and the data sets that transform them."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from qat.lit.data.sampler import Key, derived_seed

Transform = Callable[[Any], Tensor]
Sample = tuple[Tensor, int]


class LabelledImages(Protocol):
    """Raw images (a uint8 or float tensor, or a PIL image) with their labels."""

    @property
    def labels(self) -> Tensor:
        """(N,), int64, from 0."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Any, int]: ...

    def select(self, indices: np.ndarray) -> Self:
        """The images at `indices`, in that order."""
        ...


@dataclass(frozen=True, slots=True)
class TensorImages:
    """Images held in memory.

    Attributes:
        images: (N, C, H, W), uint8 in 0..255 or float32 in 0..1.
        labels: (N,), int64.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], int(self.labels[index])

    def select(self, indices: np.ndarray) -> Self:
        """The images at `indices`, in that order."""
        chosen = torch.from_numpy(indices)
        return dataclasses.replace(self, images=self.images[chosen], labels=self.labels[chosen])


class SeededDataset(Dataset[Sample]):
    """Images under a random transform that depends on (seed, epoch, index) only.

    The transforms draw from torch's global CPU generator. It is seeded for each sample and put
    back afterwards (2 us a sample), so neither the order in which samples are asked for nor the
    number of workers can change one, and the caller's own random numbers stay as they were.

    Args:
        dataset: raw images.
        transform: raw image -> tensor (C, H, W), random.
        seed: of the run.
    """

    def __init__(self, dataset: LabelledImages, transform: Transform, *, seed: int) -> None:
        self.dataset = dataset
        self.transform = transform
        self.seed = seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: Key) -> Sample:
        epoch, index = key
        image, label = self.dataset[index]
        # the CPU generator itself: torch.manual_seed would also reseed CUDA, and takes 100x as long
        generator = torch.default_generator
        before = generator.get_state()
        generator.manual_seed(derived_seed(self.seed, epoch, index))
        try:
            return self.transform(image), label
        finally:
            generator.set_state(before)


class PlainDataset(Dataset[Sample]):
    """Images under a transform without randomness, for validation, test and probes.

    Args:
        dataset: raw images.
        transform: raw image -> tensor (C, H, W).
    """

    def __init__(self, dataset: LabelledImages, transform: Transform) -> None:
        self.dataset = dataset
        self.transform = transform

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        image, label = self.dataset[index]
        return self.transform(image), label
