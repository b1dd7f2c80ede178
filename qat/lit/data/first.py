"""The first training batches, outside of any loader."""

from collections.abc import Iterator
from itertools import islice

from torch import Tensor
from torch.utils.data import default_collate

from qat.lit.data.dataset import SeededDataset
from qat.lit.data.module import ImageData
from qat.lit.data.sampler import EpochBatchSampler


def first_batches(data: ImageData, count: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The first `count` batches of the training order of epoch 0, augmented as in training.

    A function of the data options and the seed alone, wherever the run stands; at most one epoch.
    """
    images = data.parts.train
    transform = data.training_transform() if data.options.augment else data.evaluation_transform()
    dataset = SeededDataset(images, transform, seed=data.seed)
    sampler = EpochBatchSampler(len(images), data.options.batch_size, seed=data.seed)
    for keys in islice(sampler, count):
        image, label = default_collate([dataset[key] for key in keys])
        yield image, label
