"""The digits through the public interface: batches, workers, weights."""

import time
from collections import Counter

import pytest
import torch

from qat.data.registry import build_data
from qat.errors import SpecError
from qat.spec.data import FAMILIES, DataSpec
from support.products import mostly_slow


def digits(seed=0, **options):
    data = build_data(DataSpec(**options), seed=seed)
    data.prepare()
    return data


def test_task_is_known_before_anything_is_read():
    data = build_data(DataSpec())
    assert data.classes == tuple("0123456789")
    assert (data.num_classes, data.channels, data.image_size) == (10, 1, 8)
    assert data.position() is None
    assert data._parts is None


def test_batches():
    data = digits()
    batches = list(data.train_dataloader())
    assert [len(label) for _, label in batches] == [64] * 16 + [55]
    image, label = batches[0]
    assert (image.shape, image.dtype, label.dtype) == ((64, 1, 8, 8), torch.float32, torch.int64)
    for loader in (data.val_dataloader(), data.test_dataloader()):
        assert sum(len(label) for _, label in loader) == 359
        first, second = list(loader), list(loader)
        assert all(torch.equal(a[0], b[0]) for a, b in zip(first, second, strict=True))


def test_normalisation_is_that_of_the_training_part():
    data = digits(augment=False)
    images = torch.cat([image for image, _ in data.train_dataloader()])
    assert abs(images.mean()) < 1e-3
    assert abs(images.std() - 1) < 1e-3


@pytest.mark.parametrize(
    ("batch_size", "last"),
    mostly_slow(
        [(2, 2), (77, 77), (98, 98), (1078, 1078), (540, 539), (2000, 1079)], day=(1, 3, 4)
    ),
)
def test_a_single_left_over_image_is_dropped(batch_size, last):
    # 1079 = 2 * 539 + 1 = 14 * 77 + 1 = 11 * 98 + 1 = 1078 + 1 = 540 + 539
    batches = [len(label) for _, label in digits(batch_size=batch_size).train_dataloader()]
    assert batches[-1] == last
    assert len(batches) == len(digits(batch_size=batch_size).train_dataloader())
    assert sum(batches) in (1078, 1079)


@pytest.mark.parametrize("workers", mostly_slow([1, 2], day=(1,)))
def test_workers_change_nothing(workers):
    def epochs(number):
        loader = digits(batch_size=128, workers=number, seed=5).train_dataloader()
        return [batch for _ in range(2) for batch in loader]

    for (image, label), (other, name) in zip(epochs(0), epochs(workers), strict=True):
        assert torch.equal(image, other)
        assert torch.equal(label, name)


def test_what_ran_before_changes_nothing():
    fresh = next(iter(digits(seed=1).train_dataloader()))
    data = digits(seed=1)
    data.sample_batch()
    list(data.val_dataloader())
    torch.manual_seed(123)
    state = torch.get_rng_state()
    used = next(iter(data.train_dataloader()))
    assert torch.equal(fresh[0], used[0])
    assert torch.equal(state, torch.get_rng_state())


def test_seed_and_epoch_change_order_and_augmentation():
    loader = digits(seed=1).train_dataloader()
    first, second = next(iter(loader)), next(iter(loader))
    other = next(iter(digits(seed=2).train_dataloader()))
    assert not torch.equal(first[0], second[0])
    assert not torch.equal(first[0], other[0])


def test_augmentation_moves_pixels_but_little():
    plain, moved = digits(augment=False), digits()
    moved_batch, label = next(iter(moved.train_dataloader()))
    plain_batch, name = next(iter(plain.train_dataloader()))
    assert torch.equal(label, name)  # the same images in the same order
    changed = (moved_batch - plain_batch).flatten(1).abs().amax(1) > 1e-3
    assert changed.float().mean() > 0.9
    both = torch.stack([moved_batch.flatten(), plain_batch.flatten()])
    mirrored = torch.stack([moved_batch.flip(3).flatten(), plain_batch.flatten()])
    assert torch.corrcoef(both)[0, 1] > 0.5 > torch.corrcoef(mirrored)[0, 1]


def test_sample_batch_is_fixed_and_plain():
    image, label = digits(seed=1).sample_batch()
    again, _ = digits(seed=2, augment=False).sample_batch()
    assert torch.equal(image, again)
    assert image.shape == (64, 1, 8, 8)
    assert set(label.tolist()) == set(range(10))


def test_image_size_resizes_all_parts():
    data = digits(image_size=20)
    assert data.image_size == 20
    for loader in (data.train_dataloader(), data.val_dataloader()):
        assert next(iter(loader))[0].shape[1:] == (1, 20, 20)


def test_balanced_weights():
    assert digits().class_weights() is None
    data = digits(class_weights="balanced")
    counts = Counter(data.parts.train.labels.tolist())
    expected = [1079 / (10 * counts[c]) for c in range(10)]
    torch.testing.assert_close(data.class_weights(), torch.tensor(expected))
    assert data.class_weights()[data.parts.train.labels].mean() == pytest.approx(1)


def test_an_epoch_is_quick():
    loader = digits().train_dataloader()
    times = []
    for _ in range(2):
        start = time.process_time()
        list(loader)
        times.append(time.process_time() - start)
    assert min(times) < 1.5  # of the processor; 0.19 s on an idle core


def test_families_are_the_names_of_the_config():
    for name in FAMILIES:
        assert DataSpec(name=name).name == name
    with pytest.raises(
        SpecError, match=r"data\.name must be one of digits, glyphs, .*; got 'digit'"
    ):
        DataSpec(name="digit")
