"""RandAugment and random erasing: where they act, on which images, and that off is as before."""

import pytest
import torch
from torchvision.transforms import v2

from qat.data.dataset import SeededDataset
from qat.data.registry import build_data
from qat.data.sampler import derived_seed
from qat.data.transforms import augmented
from qat.errors import SpecError
from qat.functional.runtime import set_runtime
from qat.spec.check import config_hash
from qat.spec.data import DataSpec, GlyphsSpec
from support.image_folders import write_pictures


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("images") / "d", {"cat": 10, "dog": 10}, size=40)


def data_of(root, name="image_folder", **options):
    own = {
        "image_folder": {"image_size": 16, "split": "path", "batch_size": 6},
        "glyphs": {"glyphs": GlyphsSpec(train=52, validation=26, test=26)},
    }
    place = root if name == "image_folder" else root.parent
    data = build_data(DataSpec(name=name, root=str(place), **own.get(name, {}), **options), seed=2)
    data.prepare()
    return data


# float and grey; bytes in colour; files, read by Pillow
@pytest.mark.parametrize("name", ["digits", "glyphs", "image_folder"])
def test_off_is_the_transform_of_the_family_alone(root, name):
    data = data_of(root, name)
    plain = SeededDataset(data.parts.train, data.training_transform(), seed=2)
    dataset = data.training_set()
    assert dataset.mixing is None
    for key in ((0, 0), (1, 7)):
        assert torch.equal(dataset[key][0], plain[key][0])


@pytest.mark.parametrize("name", ["digits", "glyphs", "image_folder"])
def test_every_kind_of_image_is_augmented(root, name):
    data, plain = data_of(root, name, rand_augment=2, rand_magnitude=30), data_of(root, name)
    changed = 0
    for index in range(12):
        image, label = data.training_set()[0, index]
        before, known = plain.training_set()[0, index]
        assert (image.shape, image.dtype, label) == (before.shape, before.dtype, known)
        changed += not torch.equal(image, before)
    assert changed >= 9  # two operations may both be the identity


def test_operations_act_behind_the_crop_and_before_the_normalisation(root):
    data = data_of(root, rand_augment=3, rand_magnitude=12)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (data.mean, data.std))
    for index in range(6):
        torch.manual_seed(derived_seed(2, 4, index))
        image = data.parts.train.image(index)
        for step in (
            v2.RandomResizedCrop(16), v2.RandomHorizontalFlip(), v2.RandAugment(3, 12),
        ):  # fmt: skip
            image = step(image)
        expected = (v2.functional.pil_to_tensor(image) / 255 - mean) / std
        torch.testing.assert_close(data.training_set()[4, index][0], expected)


def test_an_erased_rectangle_has_the_mean_colour(root):
    data, plain = data_of(root, erase=1.0).training_set(), data_of(root).training_set()
    for index in range(12):
        image, before = data[0, index][0], plain[0, index][0]
        inside = (image != before).any(0)
        assert (image[:, inside] == 0).all()
        rows, columns = inside.any(1).sum(), inside.any(0).sum()
        assert rows * columns == inside.sum()
        assert 0.01 <= inside.float().mean() <= 0.36
    some = data_of(root, "digits", erase=0.25).training_set()
    other = data_of(root, "digits").training_set()
    hit = [not torch.equal(some[0, i][0], other[0, i][0]) for i in range(400)]
    assert abs(sum(hit) / 400 - 0.25) < 0.08


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mixup": 0.2, "augment": False}, r"data\.mixup=0\.2 augments .* data\.augment=false"),
        ({"erase": 0.1, "augment": False}, "data.erase=0.1 augments"),
        ({"mixup": 0.001}, r"data\.mixup must be 0 for none, or 0.01 .. 100; got 0.001"),
        ({"cutmix": -1.0}, r"data.cutmix must be a number >= 0 and <= 100"),
        ({"erase": 1.5}, "data.erase must be a number >= 0 and <= 1"),
        ({"rand_augment": 2.0}, "data.rand_augment must be an integer"),
        ({"rand_magnitude": 31}, "data.rand_magnitude must be an integer >= 0 and <= 30"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(SpecError, match=message):
        DataSpec(**options)


def test_a_foreign_transform_is_refused():
    with pytest.raises(SpecError, match="need a training transform"):
        augmented(lambda x: x, operations=2, magnitude=9, erase=0)


def test_a_run_of_before_keeps_its_hash():
    added = {"rand_augment": 0, "rand_magnitude": 9, "erase": 0.0, "mixup": 0.0, "cutmix": 0.0}
    assert config_hash({"data": {"name": "digits"}}) == config_hash(
        {"data": {"name": "digits"} | added}
    )
    assert config_hash({"data": {"mixup": 0.2}}) != config_hash({"data": {}})


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_arrive_in_the_memory_format_of_the_runtime(root, workers):
    data = data_of(root, workers=workers)
    with set_runtime(memory_format="channels_last"):
        moved = [*data.train_dataloader(), *data.val_dataloader()]
    data = data_of(root, workers=workers)
    plain = [*data.train_dataloader(), *data.val_dataloader()]
    for (image, label), (other, name) in zip(moved, plain, strict=True):
        assert image.is_contiguous(memory_format=torch.channels_last)
        assert other.is_contiguous()
        assert torch.equal(image, other)
        assert torch.equal(label, name)
