"""MNIST and CIFAR in their real file formats, written small and read by torchvision."""

import hashlib
import pickle
import struct

import numpy as np
import pytest
import torch
from torchvision import datasets

from qat.data.registry import build_data
from qat.errors import DataError
from qat.spec.data import DataSpec

CIFAR_FILES = {
    "cifar10": ("cifar-10-batches-py", [f"data_batch_{i}" for i in range(1, 6)], ["test_batch"]),
    "cifar100": ("cifar-100-python", ["train"], ["test"]),
}


def grey(count, classes=10):
    rng = np.random.default_rng(count)
    return rng.integers(0, 256, (count, 28, 28), dtype=np.uint8), np.arange(count) % classes


def write_mnist(root, name):
    raw = root / name / "raw"
    raw.mkdir(parents=True)
    for part, count in (("train", 240), ("t10k", 30)):
        images, labels = grey(count)
        head = struct.pack(">IIII", 0x803, count, 28, 28)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(head + images.tobytes())
        head = struct.pack(">II", 0x801, count)
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(head + labels.astype(np.uint8).tobytes())


def write_cifar(root, name, monkeypatch):
    """The pickles; only the table of their md5 sums is exchanged."""
    folder, train, test = CIFAR_FILES[name]
    label_key, classes = ("labels", 10) if name == "cifar10" else ("fine_labels", 100)
    (root / folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    sums = {}

    def write(file, content):
        data = pickle.dumps(content)
        (root / folder / file).write_bytes(data)
        sums[file] = hashlib.md5(data).hexdigest()

    for file in train + test:
        pixels = rng.integers(0, 256, (200, 3 * 32 * 32), dtype=np.uint8)
        write(file, {"data": pixels, label_key: [i % classes for i in range(200)]})
    reader = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    write(reader.meta["filename"], {reader.meta["key"]: [str(c) for c in range(classes)]})
    monkeypatch.setattr(reader, "train_list", [[f, sums[f]] for f in train])
    monkeypatch.setattr(reader, "test_list", [[f, sums[f]] for f in test])
    monkeypatch.setattr(reader, "meta", {**reader.meta, "md5": sums[reader.meta["filename"]]})


def prepared(name, root, **options):
    data = build_data(DataSpec(name=name, root=str(root), batch_size=16, **options))
    data.prepare()
    return data


@pytest.mark.parametrize(
    ("name", "folder"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")]
)
def test_mnist(tmp_path, name, folder):
    write_mnist(tmp_path, folder)
    data = prepared(name, tmp_path)
    parts = data.parts
    assert [len(parts.train), len(parts.validation), len(parts.test)] == [220, 20, 30]
    assert parts.validation.labels.bincount().tolist() == [2] * 10
    assert len(data.classes) == data.num_classes == 10
    images, labels = grey(30)
    assert np.array_equal(parts.test.images[:, 0].numpy(), images)
    assert parts.test.labels.tolist() == labels.tolist()
    train = sorted(grey(240)[0][i].tobytes() for i in range(240))
    both = torch.cat([parts.train.images, parts.validation.images])
    assert sorted(image.numpy().tobytes() for image in both) == train
    image, label = next(iter(data.test_dataloader()))
    expected = (images[:16, None] / 255 - data.mean[0]) / data.std[0]
    torch.testing.assert_close(image, torch.tensor(expected, dtype=torch.float32))
    assert label.dtype == torch.int64


@pytest.mark.parametrize(("name", "train"), [("cifar10", 1000), ("cifar100", 200)])
def test_cifar(tmp_path, monkeypatch, name, train):
    write_cifar(tmp_path, name, monkeypatch)
    data = prepared(name, tmp_path)
    parts = data.parts
    sizes = [len(parts.train), len(parts.validation), len(parts.test)]
    assert sizes == [train * 9 // 10, train // 10, 200]
    assert data.num_classes == len(set(data.classes)) == int(name.removeprefix("cifar"))
    assert list(data.classes) == sorted(data.classes)
    folder, _, (test,) = CIFAR_FILES[name]
    rows = pickle.loads((tmp_path / folder / test).read_bytes())["data"]
    first = torch.tensor(rows[0]).reshape(3, 32, 32) / 255
    mean, std = (torch.tensor(x).reshape(3, 1, 1) for x in (data.mean, data.std))
    image, _ = next(iter(data.test_dataloader()))
    torch.testing.assert_close(image[0], (first - mean) / std)
    assert next(iter(data.train_dataloader()))[0].shape == (16, 3, 32, 32)


def test_augmentation_is_a_shift_by_up_to_four_pixels_and_perhaps_a_flip(tmp_path, monkeypatch):
    write_cifar(tmp_path, "cifar10", monkeypatch)
    data = prepared("cifar10", tmp_path)
    mean, std = (torch.tensor(x).reshape(3, 1, 1) for x in (data.mean, data.std))
    loader = data.train_dataloader()
    flips, shifts = [], []
    for key in data.train_sampler.order(0)[:30]:
        moved = loader.dataset[0, key][0] * std + mean
        raw = torch.nn.functional.pad(data.parts.train[key][0] / 255, (4, 4, 4, 4))
        found = [
            (flip, top, left)
            for flip in (False, True)
            for top in range(9)
            for left in range(9)
            if torch.allclose(
                moved.flip(2) if flip else moved,
                raw[:, top : top + 32, left : left + 32],
                atol=1e-5,
            )
        ]
        assert len(found) == 1
        flips.append(found[0][0])
        shifts.append(found[0][1:])
    assert 5 <= sum(flips) <= 25
    assert len(set(shifts)) > 15


def test_mnist_is_shifted_but_never_flipped(tmp_path):
    write_mnist(tmp_path, "MNIST")
    data = prepared("mnist", tmp_path)
    dataset = data.train_dataloader().dataset
    for index in range(20):
        moved = dataset[0, index][0][0] * data.std[0] + data.mean[0]
        raw = torch.nn.functional.pad(data.parts.train[index][0][0] / 255, (2, 2, 2, 2))
        windows = raw.unfold(0, 28, 1).unfold(1, 28, 1).reshape(25, 28, 28)
        assert (windows - moved).abs().amax((1, 2)).min() < 1e-5


def test_image_size(tmp_path, monkeypatch):
    write_cifar(tmp_path, "cifar10", monkeypatch)
    data = prepared("cifar10", tmp_path, image_size=48)
    for loader in (data.train_dataloader(), data.val_dataloader()):
        assert next(iter(loader))[0].shape == (16, 3, 48, 48)


def test_download_true_with_the_files_there_needs_no_network(tmp_path, monkeypatch, no_network):
    write_cifar(tmp_path, "cifar10", monkeypatch)
    write_mnist(tmp_path, "MNIST")
    for name in ("cifar10", "mnist"):
        assert len(prepared(name, tmp_path, download=True).parts.test) > 0


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10", "cifar100", "tiny_imagenet"])
def test_download_without_network_is_one_sentence(tmp_path, name, no_network):
    data = build_data(DataSpec(name=name, root=str(tmp_path), download=True))
    data.check()
    with pytest.raises(DataError, match=r"could not be downloaded .* data\.root=") as caught:
        data.prepare()
    assert "\n" not in str(caught.value)
    assert no_network


@pytest.fixture
def no_network(monkeypatch):
    """Every connection fails; the list counts the attempts."""
    attempts = []

    def refuse(*args, **_):
        attempts.append(args)
        raise OSError("network is unreachable")

    monkeypatch.setattr("socket.getaddrinfo", refuse)
    monkeypatch.setattr("socket.socket.connect", refuse)
    return attempts


def test_a_damaged_cifar_file_is_named_as_such(tmp_path, monkeypatch):
    write_cifar(tmp_path, "cifar10", monkeypatch)
    with open(tmp_path / "cifar-10-batches-py/data_batch_3", "r+b") as file:
        file.seek(5000)
        file.write(b"damage")
    with pytest.raises(
        DataError, match=r"CIFAR-10 in data\.root=.* is missing or damaged .*download=true"
    ):
        prepared("cifar10", tmp_path)


def test_a_cut_mnist_file_is_named_as_such(tmp_path):
    write_mnist(tmp_path, "MNIST")
    path = tmp_path / "MNIST/raw/train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DataError, match=r"MNIST in data\.root=.* is missing or damaged") as caught:
        prepared("mnist", tmp_path)
    assert "\n" not in str(caught.value)
