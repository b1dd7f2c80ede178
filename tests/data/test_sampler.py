"""Order and augmentation are functions of (seed, epoch) and (seed, epoch, index) alone."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qat.data.dataset import PlainDataset, SeededDataset, TensorImages
from qat.data.loader import image_loader
from qat.data.sampler import EpochBatchSampler, derived_seed

sizes = {"length": st.integers(1, 60), "batch_size": st.integers(1, 20), "drop_last": st.booleans()}


def images(count=24):
    pixels = torch.arange(count * 4, dtype=torch.float32).reshape(count, 1, 2, 2)
    return TensorImages(pixels, torch.arange(count) % 3)


def noisy(image):
    return image + torch.rand(image.shape)


@given(**sizes, seed=st.integers(0, 5), epoch=st.integers(0, 5))
def test_an_epoch_is_a_permutation_in_batches(length, batch_size, drop_last, seed, epoch):
    sampler = EpochBatchSampler(length, batch_size, seed=seed, drop_last=drop_last)
    sampler.set_position(epoch, 0)
    batches = list(sampler)
    assert len(batches) == len(sampler)
    keys = [key for batch in batches for key in batch]
    assert {e for e, _ in keys} <= {epoch}
    indices = [i for _, i in keys]
    assert len(set(indices)) == len(indices)
    kept = length - length % batch_size if drop_last else length
    assert len(indices) == kept
    assert set(indices) <= set(range(length))
    assert all(len(batch) == batch_size for batch in batches[:-1])


@given(**sizes, data=st.data())
def test_a_position_gives_the_tail_and_then_the_next_epoch(length, batch_size, drop_last, data):
    plain = EpochBatchSampler(length, batch_size, seed=1, drop_last=drop_last)
    epochs = [list(plain), list(plain), list(plain)]
    done = data.draw(st.integers(0, len(plain)))
    sampler = EpochBatchSampler(length, batch_size, seed=1, drop_last=drop_last)
    sampler.set_position(1, done)
    assert len(sampler) == len(plain)
    assert list(sampler) == epochs[1][done:]
    assert list(sampler) == epochs[2]


def test_an_abandoned_epoch_is_left_behind():
    full = EpochBatchSampler(10, 3, seed=0)
    epochs = [list(full), list(full)]
    sampler = EpochBatchSampler(10, 3, seed=0)
    iter(sampler)  # nothing drawn: does not count
    assert next(iter(sampler)) == epochs[0][0]
    assert list(sampler) == epochs[1]


def test_orders_differ_by_seed_and_epoch_and_ignore_the_global_state():
    orders = {}
    for seed, epoch in itertools.product(range(4), range(4)):
        torch.manual_seed(epoch)
        orders[seed, epoch] = tuple(EpochBatchSampler(50, 5, seed=seed).order(epoch))
    assert len(set(orders.values())) == 16  # also seed + epoch is no key: (0, 1) and (1, 0) differ
    torch.manual_seed(99)
    before = torch.get_rng_state()
    assert tuple(EpochBatchSampler(50, 5, seed=2).order(3)) == orders[2, 3]
    assert torch.equal(torch.get_rng_state(), before)


def test_without_shuffle_the_order_is_that_of_the_data():
    sampler = EpochBatchSampler(5, 2, seed=0, shuffle=False)
    assert list(sampler) == [[(0, 0), (0, 1)], [(0, 2), (0, 3)], [(0, 4)]]


def test_locate_is_asked_at_each_iter():
    answers = iter([(2, 1), None, (0, 0)])
    sampler = EpochBatchSampler(4, 2, seed=0, shuffle=False, locate=lambda: next(answers))
    assert list(sampler) == [[(2, 2), (2, 3)]]
    assert [key[0] for batch in sampler for key in batch] == [3] * 4  # None: goes on
    assert [key[0] for batch in sampler for key in batch] == [0] * 4


def test_derived_seed_is_fixed_for_good():
    # `printf '1 2 3' | b2sum -l 64`
    assert derived_seed(1, 2, 3) == 0x19B832B2B004C52A
    assert len({derived_seed(*parts) for parts in [(1, 23), (12, 3), (1, 2, 3), (123,)]}) == 4


@settings(max_examples=20)
@given(st.permutations(list(range(6))))
def test_augmentation_ignores_the_order_of_asking(order):
    dataset = SeededDataset(images(6), noisy, seed=4)
    straight = {i: dataset[3, i][0] for i in range(6)}
    torch.manual_seed(order[0])
    assert all(torch.equal(dataset[3, i][0], straight[i]) for i in order)


def test_augmentation_differs_by_seed_epoch_and_index():
    source = images(3)
    draws = {
        tuple((SeededDataset(source, noisy, seed=s)[e, i][0] - source.images[i]).flatten().tolist())
        for s, e, i in itertools.product(range(3), repeat=3)
    }
    assert len(draws) == 27


def test_the_callers_generator_is_put_back_also_after_an_error():
    def failing(image):
        torch.rand(1)
        raise KeyError("transform")

    torch.manual_seed(0)
    before = torch.get_rng_state()
    SeededDataset(images(), noisy, seed=0)[0, 0]
    with pytest.raises(KeyError):
        SeededDataset(images(), failing, seed=0)[0, 0]
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_do_not_depend_on_workers(workers):
    def epochs(number):
        sampler = EpochBatchSampler(24, 5, seed=7)
        dataset = SeededDataset(images(), noisy, seed=7)
        loader = image_loader(dataset, number, seed=0, batch_sampler=sampler)
        return [batch for _ in range(2) for batch in loader]

    for (image, label), (other, name) in zip(epochs(0), epochs(workers), strict=True):
        assert torch.equal(image, other)
        assert torch.equal(label, name)


def test_a_loader_leaves_the_global_generator_alone():
    loader = image_loader(PlainDataset(images(), lambda x: x), 0, seed=0, batch_size=4)
    before = torch.get_rng_state()
    assert sum(len(label) for _, label in loader) == 24
    assert torch.equal(torch.get_rng_state(), before)


@given(
    counts=st.lists(st.integers(1, 30), min_size=1, max_size=6),
    seed=st.integers(0, 3),
    epoch=st.integers(0, 3),
)
def test_a_balanced_epoch_draws_classes_equally_and_lets_their_images_take_turns(
    counts, seed, epoch
):
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
    sampler = EpochBatchSampler(len(labels), 7, seed=seed, balance=labels)
    order = sampler.order(epoch)
    assert order == sampler.order(epoch)
    assert len(order) == len(labels)
    drawn = labels[order].bincount(minlength=len(counts))
    assert drawn.max() - drawn.min() <= 1
    times = torch.tensor(order).bincount(minlength=len(labels))
    for label in range(len(counts)):
        own = times[labels == label]
        assert own.max() - own.min() <= 1


def test_balanced_epochs_differ_and_go_on_in_their_middle():
    labels = torch.tensor([0] * 40 + [1] * 5)
    sampler = EpochBatchSampler(45, 10, seed=1, balance=labels)
    first, second = list(sampler), list(sampler)
    assert [key[1] for batch in first for key in batch] != [key[1] for b in second for key in b]
    sampler.set_position(0, 2)
    assert list(sampler) == first[2:]
    assert len(first) == len(sampler) == 5


def test_an_image_that_comes_again_is_augmented_anew():
    labels = torch.tensor([0] * 40 + [1] * 5)
    keys = [key for batch in EpochBatchSampler(45, 10, seed=1, balance=labels) for key in batch]
    assert len(set(keys)) == 45
    rare = [key for key in keys if key[1] == 40]
    assert len(rare) >= 4
    dataset = SeededDataset(TensorImages(torch.zeros(45, 1, 2, 2), labels), noisy, seed=3)
    assert len({dataset[key][0].numpy().tobytes() for key in rare}) == len(rare)
    assert torch.equal(dataset[rare[-1]][0], dataset[rare[-1]][0])
