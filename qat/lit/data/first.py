"""The first training batches, outside of any loader."""

from collections.abc import Iterator
from itertools import islice

from qat.lit.data.dataset import Batch, SeededDataset, collated
from qat.lit.data.module import ImageData
from qat.lit.data.sampler import EpochBatchSampler


def first_batches(data: ImageData, count: int) -> Iterator[Batch]:
    """The first `count` batches of the training order of epoch 0, augmented as in training.

    A function of the data options and the seed alone, wherever the run stands; at most one epoch.
    """
    images = data.parts.train
    transform = data.training_transform() if data.options.augment else data.evaluation_transform()
    dataset = SeededDataset(images, transform, seed=data.seed)
    sampler = EpochBatchSampler(len(images), data.options.batch_size, seed=data.seed)
    for keys in islice(sampler, count):
        yield collated([dataset[key] for key in keys])
