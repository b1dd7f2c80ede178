"""Datasets: raw images with their labels, under transforms."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from qat.data.sampler import Key, derived_seed

if TYPE_CHECKING:
    from qat.data.mixing import Mixing

Transform = Callable[[Any], Tensor]
# with a label (of a mixed image the weights of the classes), or without
Sample = tuple[Tensor, int | Tensor] | Tensor
Batch = tuple[Tensor, Tensor] | Tensor


class RawImages(Protocol):
    """Raw images (a uint8 or float tensor, or a PIL image), by index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


class LabelledImages(Protocol):
    """Raw images with their labels."""

    @property
    def labels(self) -> Tensor:
        """(N,), int64, from 0."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Any, int]: ...

    def image(self, index: int) -> Any:
        """The image without its label, which is not read."""
        ...

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

    def image(self, index: int) -> Tensor:
        """The image without its label, which is not read."""
        return self.images[index]

    def select(self, indices: np.ndarray) -> Self:
        """The images at `indices`, in that order."""
        chosen = torch.from_numpy(indices)
        return dataclasses.replace(self, images=self.images[chosen], labels=self.labels[chosen])


class SeededDataset(Dataset[Sample]):
    """Images under a random transform that depends on (seed, epoch, index, repetition) only.

    The transforms draw from torch's global CPU generator. It is seeded for each sample and put
    back afterwards (2 us a sample), so neither the order in which samples are asked for nor the
    number of workers can change one, and the caller's own random numbers stay as they were. So it
    is with the image that is mixed in, which is drawn, read and transformed by the same seed.

    Args:
        dataset: raw images, with labels or without.
        transform: raw image -> tensor (C, H, W), random.
        seed: of the run.
        mixing: of each image with another; None for none.
    """

    def __init__(
        self,
        dataset: RawImages,
        transform: Transform,
        *,
        seed: int,
        mixing: "Mixing | None" = None,
    ) -> None:
        self.dataset = dataset
        self.transform = transform
        self.seed = seed
        self.mixing = mixing

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: Key) -> Sample:
        epoch, index, *again = key
        raw = self.dataset[index]
        # the CPU generator itself: torch.manual_seed would also reseed CUDA, and takes 100x as long
        generator = torch.default_generator
        before = generator.get_state()
        generator.manual_seed(derived_seed(self.seed, epoch, index, *again))
        try:
            sample = _transformed(raw, self.transform)
            return sample if self.mixing is None else self._mixed(sample, index, self.mixing)
        finally:
            generator.set_state(before)

    def _mixed(self, sample: Sample, index: int, mixing: "Mixing") -> Sample:
        other = self.dataset[mixing.partner(index, len(self))]
        return mixing(sample, _transformed(other, self.transform))


class PlainDataset(Dataset[Sample]):
    """Images under a transform without randomness, for validation, test and probes.

    Args:
        dataset: raw images, with labels or without.
        transform: raw image -> tensor (C, H, W).
    """

    def __init__(self, dataset: RawImages, transform: Transform) -> None:
        self.dataset = dataset
        self.transform = transform

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        return _transformed(self.dataset[index], self.transform)


def _transformed(raw: Any, transform: Transform) -> Sample:
    return (transform(raw[0]), raw[1]) if isinstance(raw, tuple) else transform(raw)


def fingerprint(images: RawImages) -> str:
    """What a run is resumed with: the number of images, and of files without labels their names."""
    own: str | None = getattr(images, "fingerprint", None)
    return own or str(len(images))


def images_of(batch: Batch) -> Tensor:
    """The images (N, C, H, W) of a batch with labels or without."""
    return batch if isinstance(batch, Tensor) else batch[0]


def collated(samples: Sequence[Sample]) -> Batch:
    """Samples as one batch, in main memory."""
    batch: Batch | list[Tensor] = default_collate(list(samples))
    return batch if isinstance(batch, Tensor) else (batch[0], batch[1])
