"""Mixup and CutMix: a sample is a function of the images and its key, its label of its pixels."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qat.data.dataset import SeededDataset, TensorImages, images_of
from qat.data.loader import image_loader
from qat.data.mixing import Mixing
from qat.data.module import first_batches
from qat.data.registry import build_data
from qat.data.sampler import EpochBatchSampler
from qat.spec.data import DataSpec, GlyphsSpec

H, W, COUNT = 5, 7, 12
ALL = {"rand_augment": 2, "erase": 0.5, "mixup": 0.4, "cutmix": 1.0}


def mixed(labels=None, *, mixup=0.0, cutmix=0.0, classes=COUNT, seed=0, **options):
    """Images of one value each, their number; unless told otherwise each is a class of its own."""
    labels = torch.arange(COUNT) if labels is None else labels
    values = torch.arange(len(labels), dtype=torch.float32).view(-1, 1, 1, 1)
    images = TensorImages(values.expand(-1, 1, H, W), labels)
    mixing = Mixing(classes=classes, mixup=mixup, cutmix=cutmix, **options)
    return SeededDataset(images, lambda x: x, seed=seed, mixing=mixing)


def digits(**options):
    data = build_data(DataSpec(**options))
    data.prepare()
    return data


KEYS = list(itertools.product(range(40), range(COUNT)))


def test_mixup_is_the_mean_by_the_label():
    shares = []
    for epoch, index in KEYS:
        image, label = mixed(mixup=0.7)[epoch, index]
        other = next((int(k) for k in label.nonzero() if k != index), index)
        share = label[index]
        assert torch.equal(image, image[:, :1, :1].expand(1, H, W))
        torch.testing.assert_close(image[0, 0, 0], share * index + (1 - share) * other)
        shares.append(float(share))
    drawn = torch.tensor(shares)
    # Beta(a, a): mean 1/2, variance 1 / (4 (2 a + 1))
    assert abs(drawn.mean() - 0.5) < 0.06
    assert abs(drawn.var() - 1 / (4 * 2.4)) < 0.015


def test_the_rectangle_of_cutmix_has_the_pixels_that_its_label_says():
    sizes = set()
    for epoch, index in KEYS:
        image, label = mixed(cutmix=1.0)[epoch, index]
        inside = image[0] != index
        others = image[0][inside]
        assert abs((1 - label[index]) * H * W - inside.sum()) < 1e-4
        if others.numel():
            assert abs(label[int(others[0])] - inside.sum() / (H * W)) < 1e-6
            assert (others == others[0]).all()
            rows, columns = inside.any(1).nonzero(), inside.any(0).nonzero()
            height, width = (int(x.max() - x.min()) + 1 for x in (rows, columns))
            assert height * width == inside.sum()
            sizes.add((height, width))
    assert len(sizes) > 5


def test_with_both_each_image_draws_one_of_the_two():
    samples = [mixed(mixup=1.0, cutmix=1.0)[key] for key in KEYS]
    # the value of a whole number of images lies in a rectangle, a blend nearly never does
    blended = [not bool((image == image.round()).all()) for image, _ in samples]
    assert abs(sum(blended) / len(blended) - 0.5) < 0.1


@settings(max_examples=50)
@given(
    alphas=st.tuples(
        st.just(0.0) | st.floats(0.01, 100), st.just(0.0) | st.floats(0.01, 100)
    ).filter(any),
    seed=st.integers(0, 2**40),
    index=st.integers(0, COUNT - 1),
)
def test_labels_are_shares_of_one_whole(alphas, seed, index):
    labels = torch.arange(COUNT) % 3
    dataset = mixed(labels, mixup=alphas[0], cutmix=alphas[1], classes=3, seed=seed)
    image, label = dataset[0, index]
    assert (image.shape, label.shape, label.dtype) == ((1, H, W), (3,), torch.float32)
    assert label.sum() == pytest.approx(1, abs=1e-6)
    assert label.min() >= 0


def partners(dataset, keys):
    drawn = []
    for epoch, index in keys:
        torch.manual_seed(1000 * epoch + index)
        drawn.append(dataset.mixing.partner(index, len(dataset)))
    return drawn


def test_partners_are_all_others_equally_often():
    dataset, keys = mixed(mixup=1.0), list(itertools.product(range(100), range(COUNT)))
    drawn = partners(dataset, keys)
    assert all(partner != index for partner, (_, index) in zip(drawn, keys, strict=True))
    counts = torch.tensor(drawn).bincount(minlength=COUNT)
    assert counts.min() > 0.6 * len(keys) / COUNT
    alone = mixed(torch.tensor([0]), mixup=1.0, classes=1)
    assert partners(alone, [(0, 0)]) == [0]


def test_balanced_partners_are_of_every_class_equally_often():
    labels = torch.tensor([0] * 90 + [3] * 10)
    dataset = mixed(labels, mixup=1.0, classes=4, balance=labels)
    drawn = labels[partners(dataset, [(e, i) for e in range(10) for i in range(100)])]
    assert abs((drawn == 3).float().mean() - 0.5) < 0.06


def test_so_they_are_in_a_run_that_draws_classes_equally_often():
    data = digits(sampling="balanced", mixup=1.0)
    labels = data.parts.train.labels.numpy()
    rare = [*np.flatnonzero(labels == 0)[:90], *np.flatnonzero(labels == 3)[:10]]
    few = data.parts.train.select(np.array(rare))
    data._parts = dataclasses.replace(data.parts, train=few)
    dataset = data.train_dataloader().dataset
    shares = torch.stack([dataset[epoch, i][1] for epoch in range(10) for i in range(90)])
    # of 900 partners of zeros half are threes
    assert abs((shares[:, 3] > 0).float().mean() - 0.5) < 0.06


@pytest.fixture(scope="module")
def letters(tmp_path_factory):
    """Few images in colour, under all that there is, by the number of workers and more."""

    def data(seed=5, labels=True, **options):
        few = GlyphsSpec(train=52, validation=26, test=26)
        root = str(tmp_path_factory.getbasetemp())
        spec = DataSpec(name="glyphs", root=root, glyphs=few, batch_size=20, **ALL, **options)
        found = build_data(spec, seed=seed, labels=labels)
        found.prepare()
        return found

    return data


@pytest.mark.parametrize("options", [{}, {"sampling": "balanced"}], ids=["once", "balanced"])
def test_workers_change_no_sample(letters, options):
    def batches(workers):
        loader = letters(workers=workers, **options).train_dataloader()
        return [batch for _ in range(2) for batch in loader]

    for (image, label), (other, name) in zip(batches(0), batches(2), strict=True):
        assert torch.equal(image, other)
        assert torch.equal(label, name)
        assert label.shape == (len(image), 26)


@pytest.mark.parametrize("ranks", [2, 3])
def test_shares_of_processes_are_the_samples_of_one(ranks):
    dataset = mixed(mixup=0.5, cutmix=0.5)

    def batches(rank, size):
        sampler = EpochBatchSampler(COUNT, 7, seed=1, rank=rank, ranks=size)
        return list(image_loader(dataset, 0, seed=0, batch_sampler=sampler))

    shares = [batches(rank, ranks) for rank in range(ranks)]
    for number, (image, label) in enumerate(batches(0, 1)):
        for rank in range(ranks):
            own, name = shares[rank][number]
            assert torch.equal(own, image[rank::ranks])
            assert torch.equal(name, label[rank::ranks])


def test_a_sample_does_not_depend_on_what_was_asked_before_and_leaves_no_trace():
    dataset = mixed(mixup=0.5, cutmix=0.5)
    straight = [dataset[1, index] for index in range(COUNT)]
    torch.manual_seed(7)
    before = torch.get_rng_state()
    for index in reversed(range(COUNT)):
        for one, other in zip(dataset[1, index], straight[index], strict=True):
            assert torch.equal(one, other)
    assert torch.equal(before, torch.get_rng_state())
    assert not torch.equal(dataset[2, 0][1], straight[0][1])


def test_images_without_labels_are_mixed_as_those_with(letters):
    supervised, alone = (letters(labels=labels) for labels in (True, False))
    for (image, _), other in zip(
        supervised.train_dataloader(), alone.train_dataloader(), strict=True
    ):
        assert torch.equal(image, other)


def test_only_batches_of_training_are_mixed():
    data, plain = digits(mixup=1.0), digits()
    assert images_of(next(iter(data.train_dataloader()))).shape == (64, 1, 8, 8)
    for found, known in (
        (next(iter(data.val_dataloader())), next(iter(plain.val_dataloader()))),
        (next(iter(data.test_dataloader())), next(iter(plain.test_dataloader()))),
        (next(first_batches(data, 1)), next(first_batches(plain, 1))),
        (data.sample_batch(), plain.sample_batch()),
    ):
        assert torch.equal(found[0], known[0])
        assert torch.equal(found[1], known[1])
