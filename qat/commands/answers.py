"""Predictions, accuracy and latency of anything that answers images with logits."""

import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from qat.errors import SpecError
from qat.spec.header import Preprocessing
from qat.storage.data_changes import data_changes, sentence
from qat.storage.data_record import read_record

if TYPE_CHECKING:
    from qat.data.module import ImageData  # Lightning: files do without

Logits = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Answers:
    """What a network says of the images of one part, in their order.

    Attributes:
        logits: float32 (N, K).
        labels: int64 (N,).
    """

    logits: Tensor
    labels: Tensor

    @property
    def classes(self) -> Tensor:
        """The class of the largest logit, int64 (N,)."""
        return self.logits.argmax(dim=1)

    @property
    def accuracy(self) -> float:
        """Share of the images whose class is right, 0..1."""
        return float((self.classes == self.labels).double().mean())


def answers(network: Logits, batches: Iterable[tuple[Tensor, ...]]) -> Answers:
    """Ask a network about every batch (image, label)."""
    pairs = [(network(batch[0]).float(), batch[1]) for batch in batches]
    logits, labels = zip(*pairs, strict=True)
    return Answers(torch.cat(logits), torch.cat(labels))


def check_fits(preprocessing: Preprocessing, data: "ImageData") -> None:
    """Raise SpecError unless the images of `data` are what the network was trained for."""
    there = (data.channels, data.image_size, tuple(data.classes))
    here = (preprocessing.channels, preprocessing.size, preprocessing.classes)
    names = ("channels", "pixels a side", "classes")
    for name, ours, theirs in zip(names, here, there, strict=True):
        if ours != theirs:
            raise SpecError(
                f"the network was trained for {name} {_told(ours, theirs)}, "
                f"data={data.options.name} has {_told(theirs, ours)}; evaluate it on data of its "
                "own kind, or set data.image_size"
            )
    if (data.mean, data.std) != (preprocessing.mean, preprocessing.std):
        raise SpecError(
            f"the network's images are normalised by mean {preprocessing.mean}, those of "
            f"data={data.options.name} by {data.mean}; evaluate it on data of its own kind"
        )


def _told(own: object, other: object) -> str:
    """A value, or a number of classes with the first of those that the other has not."""
    if not isinstance(own, tuple) or not isinstance(other, tuple):
        return str(own)
    strange = [name for name in own if name not in other]
    named = f" with {', '.join(strange[:3])}" if strange else " in another order"
    return f"{len(own)}{named}{' ...' if len(strange) > 3 else ''}"


def tell_changes(run: Path, data: "ImageData") -> None:
    """Print what differs between the images that a run held out and those that it is judged on.

    Nothing is printed of a run that wrote nothing down, or is judged on another data set.

    Raises:
        CheckpointError: what it wrote down is damaged.
    """
    before = read_record(run)
    if before is None or before.name != data.options.name:
        return
    changes = data_changes(before, data.record(), parts=("validation", "test"))
    if changes:
        print(f"note: not the images that {run} held out: {sentence(changes)}", flush=True)


@dataclass(frozen=True, slots=True)
class Latency:
    """Seconds of one forward pass over `batch` images: the fastest and the median round."""

    batch: int
    fastest: float
    median: float


def latencies(
    networks: dict[str, Logits], shape: tuple[int, ...], *, batch: int, rounds: int
) -> dict[str, Latency]:
    """Time networks on random images, taking turns so that whatever else runs hits all of them.

    Args:
        networks: name -> network.
        shape: (C, H, W) of an image.
        batch: images per pass.
        rounds: timed passes of each network, >= 1, after two that are not.
    """
    image = torch.randn(batch, *shape, generator=torch.Generator().manual_seed(0))
    seconds: dict[str, list[float]] = {name: [] for name in networks}
    for _ in range(rounds + 2):
        for name, network in networks.items():
            start = time.perf_counter()
            network(image)
            seconds[name].append(time.perf_counter() - start)
    return {
        name: Latency(batch, min(times[2:]), statistics.median(times[2:]))
        for name, times in seconds.items()
    }
