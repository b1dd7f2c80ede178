"""Images without labels: where they come from, and that no label is read on the way."""

import logging
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from qat.data.digits import Digits
from qat.data.image_files import UnreadableImageError
from qat.data.registry import build_data
from qat.data.unlabelled.folder import folder_images
from qat.data.unlabelled.form import Form
from qat.data.unlabelled.photographs import photograph_patches
from qat.data.unlabelled.torchvision_set import torchvision_images
from qat.errors import DataError, SpecError
from qat.spec.data import DataSpec
from qat.spec.schema import read
from qat.spec.unlabelled import (
    FolderImages,
    Photographs,
    TaskImages,
    TorchvisionImages,
    UnlabelledSpec,
    check_unlabelled,
)

SMALL_GREY = Form(1, 8)
NAMES = ["a.png", "b/c.jpg", "b/d/e.png", "z.bmp"]


def picture(path, level, size=(20, 12), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (level, level, level)).convert(mode).save(path)


def folder(root, names=NAMES):
    """Images whose brightness tells their place among the sorted names."""
    for name in reversed(names):
        picture(root / name, 40 * (1 + names.index(name)))
    return root


def as_tensor(images):
    from torchvision.transforms.v2.functional import pil_to_tensor

    raw = (images[i] for i in range(len(images)))
    return [r if isinstance(r, torch.Tensor) else pil_to_tensor(r) for r in raw]


# -- a folder -------------------------------------------------------------------------------------


def test_a_nested_folder_in_the_order_of_its_paths(tmp_path):
    folder(tmp_path)
    (tmp_path / "notes.txt").write_text("no image")
    picture(tmp_path / ".hidden.png", 0)
    images = folder_images(FolderImages(root=str(tmp_path)), SMALL_GREY)
    found = as_tensor(images)
    assert [i.shape for i in found] == [(1, 8, 8)] * 4
    # jpeg may be off by one
    assert np.allclose([float(i.float().mean()) for i in found], [40, 80, 120, 160], atol=2)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_mode_takes_the_channels_of_the_task(tmp_path, mode, channels):
    picture(tmp_path / "a.png", 255, mode=mode)
    (image,) = as_tensor(folder_images(FolderImages(root=str(tmp_path)), Form(channels, 8)))
    assert image.shape == (channels, 8, 8)
    assert image.min() == 255


def test_the_middle_square_is_kept(tmp_path):
    pixels = np.zeros((8, 24, 3), dtype=np.uint8)
    pixels[:, 8:16] = 200
    Image.fromarray(pixels).save(tmp_path / "a.png")
    (image,) = as_tensor(folder_images(FolderImages(root=str(tmp_path)), Form(3, 8)))
    assert (image == 200).all()


def broken(root):
    (root / "m.png").write_text("this is text")
    (root / "n.jpg").write_bytes(b"")


def test_an_unreadable_file_is_refused_by_name(tmp_path):
    broken(folder(tmp_path))
    with pytest.raises(DataError, match=r"2 of 6 image files cannot be read: .*m\.png \(.*") as e:
        folder_images(FolderImages(root=str(tmp_path)), SMALL_GREY)
    assert "n.jpg (it is empty); replace or remove them, or leave" in str(e.value)
    assert str(e.value).endswith("by unlabelled.folder.unreadable=skip")


def test_a_file_that_gets_damaged_later_is_refused_by_name(tmp_path):
    images = folder_images(FolderImages(root=str(folder(tmp_path))), SMALL_GREY)
    os.truncate(images.paths[0], 9)
    with pytest.raises(UnreadableImageError, match=r"is not a readable image"):
        as_tensor(images)


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.int64, torch.float32])
def test_tensors_of_an_unknown_range_are_refused(dtype):
    with pytest.raises(ValueError, match=r"pixels of torch\..* in 0\.\.255 have no known range"):
        Form(3, 8)(torch.tensor([0, 255]).to(dtype).repeat(3, 8, 4))


def test_files_stand_upright_where_those_of_the_task_do(tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (8, 4)).save(tmp_path / "a.png", exif=exif)
    for is_upright, size in ((True, (4, 8)), (False, (8, 4))):
        form = Form(3, None, is_upright=is_upright)
        assert folder_images(FolderImages(root=str(tmp_path)), form)[0].size == size


def test_unreadable_files_are_counted_and_left_out(tmp_path, caplog):
    broken(folder(tmp_path))
    with caplog.at_level(logging.WARNING):
        images = folder_images(FolderImages(root=str(tmp_path), unreadable="skip"), SMALL_GREY)
    assert len(as_tensor(images)) == 4
    assert "2 of 6 files are no readable images and are left out" in caplog.text
    assert "m.png" in caplog.text
    assert "n.jpg" in caplog.text


def test_nothing_readable_is_an_error(tmp_path):
    broken(tmp_path)
    with pytest.raises(DataError, match="none of its 2 images is readable"):
        folder_images(FolderImages(root=str(tmp_path), unreadable="skip"), SMALL_GREY)


def test_the_checks_before_a_run(tmp_path):
    cases = {
        None: (SpecError, r"unlabelled\.folder\.root must be given"),
        str(tmp_path / "nowhere"): (DataError, "nowhere is no folder"),
        str(tmp_path): (DataError, "holds no image .*jpg"),
    }
    for root, (error, words) in cases.items():
        with pytest.raises(error, match=words):
            check_unlabelled(UnlabelledSpec(folder=FolderImages(root=root)))
    check_unlabelled(UnlabelledSpec(folder=FolderImages(root=str(folder(tmp_path)))))
    with pytest.raises(SpecError, match=r"unlabelled\.torchvision\.name must be given"):
        check_unlabelled(UnlabelledSpec(torchvision=TorchvisionImages()))
    with pytest.raises(SpecError, match="one or more of task, folder, photographs, torchvision"):
        read(UnlabelledSpec, {}, "unlabelled")


def test_the_checks_import_no_torch():
    code = "import qat.spec.unlabelled, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# -- photographs ----------------------------------------------------------------------------------


def test_patches_are_drawn_once_and_are_no_flat_grey():
    options = Photographs(patches=200)
    one, again = (as_tensor(photograph_patches(options, SMALL_GREY, smallest=8)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    other = as_tensor(photograph_patches(Photographs(patches=200, seed=1), SMALL_GREY, smallest=8))
    assert not torch.equal(one[0], other[0])
    assert len({image.numpy().tobytes() for image in one}) > 190
    # stretched: all but patches of a single colour reach both ends
    assert sum(int(i.min() == 0 and i.max() == 255) for i in one) > 190


def test_patches_as_they_are_lie_in_the_photographs():
    from sklearn.datasets import load_sample_images

    options = Photographs(patches=20, largest=1.0, stretch=False)
    whole = [torch.tensor(image) for image in load_sample_images().images]
    for patch in as_tensor(photograph_patches(options, Form(3, 8), smallest=8)):
        pixels = patch.permute(1, 2, 0)
        assert any(_holds(image, pixels) for image in whole)


def _holds(image, patch):
    corners = (image[:-7, :-7] == patch[0, 0]).all(-1).nonzero().tolist()
    return any(torch.equal(image[y : y + 8, x : x + 8], patch) for y, x in corners)


def test_a_task_larger_than_the_photographs():
    with pytest.raises(DataError, match="427 pixels at most, the task wants 448"):
        photograph_patches(Photographs(), Form(3, 448), smallest=448)


# -- torchvision ----------------------------------------------------------------------------------


def test_any_set_of_torchvision():
    options = {"size": 5, "image_size": [3, 10, 14]}
    images = torchvision_images(TorchvisionImages(name="FakeData", options=options), SMALL_GREY)
    assert [i.shape for i in as_tensor(images)] == [(1, 8, 8)] * 5


@pytest.mark.parametrize(
    ("values", "error", "words"),
    [
        ({"name": "CIFAR11"}, SpecError, "CIFAR10"),
        (
            {"name": "FakeData", "options": {"sise": 3}},
            SpecError,
            "unlabelled.torchvision.options={'sise': 3}",
        ),
        (
            {"name": "MNIST", "root": "/nowhere"},
            DataError,
            "set unlabelled.torchvision.download=true",
        ),
    ],
)
def test_what_torchvision_cannot_give(values, error, words):
    with pytest.raises(error) as caught:
        torchvision_images(TorchvisionImages(**values), SMALL_GREY)
    assert words in str(caught.value)


# -- the data module ------------------------------------------------------------------------------


class NoLabels:
    """Images that stop whoever asks for a label."""

    def __init__(self, images):
        self._images = images

    def __len__(self):
        return len(self._images)

    def __getitem__(self, index):
        raise AssertionError("a label was read")

    @property
    def labels(self):
        raise AssertionError("a label was read")

    def image(self, index):
        return self._images.image(index)


class Guarded(Digits):
    def load(self):
        parts = super().load()
        return type(parts)(NoLabels(parts.train), NoLabels(parts.validation), parts.test)


def only(unlabelled=None, *, task=Guarded, seed=3, **options):
    data = task(DataSpec(**options), seed=seed, labels=False, unlabelled=unlabelled)
    data.prepare()
    return data


def test_training_and_validation_read_no_label_and_the_test_does():
    data = only()
    assert all(isinstance(batch, torch.Tensor) for batch in data.train_dataloader())
    assert all(isinstance(batch, torch.Tensor) for batch in data.val_dataloader())
    assert data.sample_batch().shape == (64, 1, 8, 8)
    assert data.class_weights() is None
    image, label = next(iter(data.test_dataloader()))
    assert len(image) == len(label)


def test_images_order_and_augmentation_are_those_of_the_labelled_task():
    labelled = Digits(DataSpec(), seed=3)
    labelled.prepare()
    data = only()
    for _ in range(2):  # epochs
        pairs = zip(data.train_dataloader(), labelled.train_dataloader(), strict=True)
        assert all(torch.equal(image, both[0]) for image, both in pairs)
    pairs = zip(data.val_dataloader(), labelled.val_dataloader(), strict=True)
    assert all(torch.equal(image, both[0]) for image, both in pairs)
    assert data.batches_per_epoch == labelled.batches_per_epoch
    for fact in ("channels", "image_size", "mean", "std", "classes", "num_classes"):
        assert getattr(data, fact) == getattr(labelled, fact)


def test_workers_change_nothing():
    spec = UnlabelledSpec(photographs=Photographs(patches=70), task=TaskImages(share=0.1))
    alone, helped = only(spec), only(spec, workers=2)
    pairs = zip(alone.train_dataloader(), helped.train_dataloader(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_a_position_can_be_gone_to():
    data = only(UnlabelledSpec(photographs=Photographs(patches=200)))
    epochs = [list(data.train_dataloader()) for _ in range(1)]
    loader = data.train_dataloader()
    data.train_sampler.set_position(0, 2)
    rest = list(loader)
    assert all(torch.equal(a, b) for a, b in zip(rest, epochs[0][2:], strict=True))


def test_several_sources_are_mixed(tmp_path):
    folder(tmp_path)
    spec = read(
        UnlabelledSpec,
        {
            "photographs": {"patches": 10, "largest": 8.0, "stretch": True, "seed": 0},
            "folder": {"root": str(tmp_path), "unreadable": "refuse"},
            "task": {"share": 0.01},
        },
        "unlabelled",
    )
    assert list(spec.sources) == ["task", "folder", "photographs"]
    data = only(spec, augment=False)
    assert len(data.parts.train) == 11 + 4 + 10
    raw = as_tensor(data.parts.train)
    assert raw[0].dtype == torch.float32
    assert float(raw[11].float().mean()) == 40
    patches = photograph_patches(spec.photographs, SMALL_GREY, smallest=8)
    assert torch.equal(raw[-1], patches[9])
    assert sum(len(batch) for batch in data.train_dataloader()) == 25
    first = next(iter(data.train_dataloader()))
    assert first.shape == (25, 1, 8, 8)


def test_class_weights_would_need_labels():
    with pytest.raises(SpecError, match=r"data\.class_weights=balanced"):
        Digits(DataSpec(class_weights="balanced"), labels=False)
    with pytest.raises(SpecError, match="labels=False"):
        Digits(DataSpec(), unlabelled=UnlabelledSpec(task=TaskImages()))


def test_a_task_that_crops_gets_the_images_whole(tmp_path):
    for name in ("cat", "dog"):
        for number in range(5):
            picture(tmp_path / "task" / name / f"{number}.png", 9 * number, size=(40, 30))
    for name in ("a", "b"):
        picture(tmp_path / "more" / f"{name}.png", 99, size=(70, 50), mode="L")
    options = DataSpec(name="image_folder", root=str(tmp_path / "task"), image_size=16)
    spec = UnlabelledSpec(folder=FolderImages(root=str(tmp_path / "more")))
    data = build_data(options, labels=False, unlabelled=spec)
    data.prepare()
    raw = data.parts.train[0]
    assert (raw.size, raw.mode) == ((70, 50), "RGB")
    assert data.sample_batch().shape == (2, 3, 16, 16)


def test_paths_are_kept_as_bytes_for_names_of_any_encoding(tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    picture(tmp_path / "plain.png", 10)
    os.rename(tmp_path / "plain.png", tmp_path / name)
    (image,) = as_tensor(folder_images(FolderImages(root=str(tmp_path)), SMALL_GREY))
    assert image.float().mean() == 10


def test_links_in_circles_are_walked_once(tmp_path):
    folder(tmp_path / "images")
    for name in ("self", "again"):
        (tmp_path / "images" / name).symlink_to(tmp_path / "images")
    assert len(folder_images(FolderImages(root=str(tmp_path / "images")), SMALL_GREY)) == 4


def test_a_pipe_is_no_image(tmp_path):
    folder(tmp_path)
    os.mkfifo(tmp_path / "pipe.png")
    assert len(folder_images(FolderImages(root=str(tmp_path)), SMALL_GREY)) == 4


def test_a_single_image_is_too_few(tmp_path):
    picture(tmp_path / "a.png", 10)
    with pytest.raises(DataError, match="unlabelled=folder gives 1 image; training needs 2"):
        only(UnlabelledSpec(folder=FolderImages(root=str(tmp_path))))


@pytest.mark.parametrize("key", ["root", "download"])
def test_options_with_a_place_of_their_own(key):
    with pytest.raises(SpecError, match=rf"options\.{key} has a place of its own"):
        TorchvisionImages(name="STL10", options={key: True})


def test_a_set_that_downloads_by_default_is_told_not_to(tmp_path, monkeypatch):
    asked = []

    def refuse(*args, **kwargs):
        asked.append(args)
        raise OSError("no network")

    monkeypatch.setattr("socket.create_connection", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    options = TorchvisionImages(name="SEMEION", root=str(tmp_path))
    with pytest.raises(DataError, match="is missing or damaged"):
        torchvision_images(options, SMALL_GREY)
    assert asked == []


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ((torch.zeros(5, 8, 8), 0), r"begin with \(5, 8, 8\)"),
        (({"image": 1}, 0), "begin with dict"),
        ((np.zeros((8, 8)), 0), "begin with ndarray"),
        (torch.zeros(8, 8), r"begin with \(8, 8\)"),
        ((torch.full((1, 8, 8), 255.0), 0), r"float pixels must lie in 0\.\.1, found 255"),
    ],
)
def test_items_that_do_not_begin_with_an_image(item, words, monkeypatch):
    from torchvision import datasets

    monkeypatch.setattr(datasets.FakeData, "__getitem__", lambda *_: item)
    with pytest.raises(SpecError, match=words):
        torchvision_images(TorchvisionImages(name="FakeData"), SMALL_GREY)


def test_an_empty_set(monkeypatch):
    with pytest.raises(DataError, match="FakeData is empty"):
        torchvision_images(TorchvisionImages(name="FakeData", options={"size": 0}), SMALL_GREY)


def test_the_fingerprint_is_that_of_the_names(tmp_path):
    from qat.data.dataset import fingerprint

    one, other = folder(tmp_path / "one"), folder(tmp_path / "other")

    def mark(root):
        return fingerprint(only(UnlabelledSpec(folder=FolderImages(root=str(root)))).parts.train)

    before = mark(one)
    assert before == mark(other)
    (one / "z.bmp").rename(one / "y.bmp")
    assert mark(one) != before
    assert fingerprint(only().parts.train) == "1079"


def test_a_folder_set_of_torchvision_opens_no_foreign_format(tmp_path):
    for name in ("a/1.png", "b/2.png"):
        picture(tmp_path / name, 9)
    options = TorchvisionImages(name="ImageFolder", root=str(tmp_path))
    assert torchvision_images(options, Form(3, None))[1].mode == "RGB"
    (tmp_path / "a" / "1.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    with pytest.raises(DataError, match=r"1\.png is not a readable image \(it begins like none of"):
        torchvision_images(options, Form(3, None))
