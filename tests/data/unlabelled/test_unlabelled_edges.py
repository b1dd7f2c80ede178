"""Unlabelled images at the edges: spawned workers, odd modes, links, early checks."""

import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from qat.data.registry import build_data
from qat.data.unlabelled.form import Form
from qat.errors import DataError, SpecError
from qat.spec.data import DataSpec
from qat.spec.unlabelled import (
    FolderImages,
    Photographs,
    TaskImages,
    TorchvisionImages,
    UnlabelledSpec,
    check_unlabelled,
)


def images_only(**sources):
    module = build_data(DataSpec(), labels=False, unlabelled=UnlabelledSpec(**sources))
    module.prepare()
    return module


def picture(path, level):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (9, 9), level).save(path)


def levels(images):
    return [float(np.asarray(images[i]).mean()) for i in range(len(images))]


def test_sources_travel_to_workers_that_are_spawned(tmp_path):
    picture(tmp_path / "a.png", 10)
    sources = {
        "task": TaskImages(share=0.1),
        "folder": FolderImages(root=str(tmp_path)),
        "photographs": Photographs(patches=3),
        "torchvision": TorchvisionImages(name="FakeData", options={"size": 2}),
    }
    images = images_only(**sources).parts.train
    again = pickle.loads(pickle.dumps(images))
    assert len(again) == 108 + 1 + 3 + 2
    for index in range(len(images)):
        assert np.array_equal(np.asarray(images[index]), np.asarray(again[index]))


@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_torchvision_in_odd_modes(channels):
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([0, 0, 0, 200, 200, 200])
    deep = Image.fromarray(np.full((8, 8), 200 * 257, np.uint16))
    clear = Image.new("LA", (8, 8), (200, 0))
    for image in (palette, deep, clear, Image.new("RGBA", (8, 8), (200, 200, 200, 0))):
        pixels = np.asarray(Form(channels, 8)(image))
        assert np.unique(pixels).tolist() == [200], image.mode
        assert pixels.size == 64 * channels


def test_a_folder_of_links_and_of_hidden_folders(tmp_path):
    for number, name in enumerate(("real/a.png", "real/.cache/b.png", "real/sub/c.png")):
        picture(tmp_path / name, 10 * number)
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "there").symlink_to(tmp_path / "real")
    images = images_only(folder=FolderImages(root=str(tmp_path / "linked"))).parts.train
    assert levels(images) == [0, 20]


def test_a_folder_whose_images_are_hidden_holds_none(tmp_path):
    picture(tmp_path / ".thumbnails" / "a.png", 1)
    with pytest.raises(DataError, match="holds no image"):
        check_unlabelled(UnlabelledSpec(folder=FolderImages(root=str(tmp_path))))


def test_what_was_skipped_is_told(tmp_path):
    for number in range(2):
        picture(tmp_path / f"{number}.png", number)
    (tmp_path / "bad.png").touch()
    module = images_only(folder=FolderImages(root=str(tmp_path), unreadable="skip"))
    assert module.parts.train.skipped == (str(tmp_path / "bad.png"),)
    assert images_only(task=TaskImages()).parts.train.skipped == ()


def test_a_share_is_chosen_without_labels_and_grows():
    train = build_data(DataSpec()).parts.train
    few, more = (images_only(task=TaskImages(share=share)).parts.train for share in (0.01, 0.1))
    assert [len(few), len(more)] == [11, 108]
    assert all(torch.equal(few[i], more[i]) for i in range(11))
    # the first ones of the stratified order would hold each digit once or twice
    assert not all(torch.equal(few[i], train.image(i)) for i in range(11))


def test_unknown_names_of_torchvision_are_refused_before_the_run():
    for name, words in (("CIFAR", "did you mean CIFAR10"), ("qqqqq", r"use e\.g\. CIFAR10")):
        with pytest.raises(SpecError, match=rf"name={name} is no class .*; {words}"):
            check_unlabelled(UnlabelledSpec(torchvision=TorchvisionImages(name=name)))
    for name in datasets.__all__:
        if isinstance(getattr(datasets, name), type):
            check_unlabelled(UnlabelledSpec(torchvision=TorchvisionImages(name=name)))


def test_the_checks_read_names_and_folders_without_torch(tmp_path):
    picture(tmp_path / "a.png", 1)
    code = (
        "import sys; from qat.spec.unlabelled import *\n"
        f"folder = FolderImages(root={str(tmp_path)!r})\n"
        "source = TorchvisionImages(name='STL10')\n"
        "check_unlabelled(UnlabelledSpec(folder=folder, torchvision=source))\n"
        "heavy = ('torch', 'torchvision', 'lightning', 'numpy', 'PIL', 'sklearn')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_torchvision_data_that_are_no_images(monkeypatch):
    with pytest.raises(DataError, match=r"VisionDataset in .* \(NotImplementedError") as caught:
        images_only(torchvision=TorchvisionImages(name="VisionDataset"))
    assert "\n" not in str(caught.value)
    clip = torch.zeros(4, 3, 8, 8)
    monkeypatch.setattr(datasets.FakeData, "__getitem__", lambda *_: (clip, 0))
    with pytest.raises(SpecError, match=r"FakeData: its items begin with \(4, 3, 8, 8\)"):
        images_only(torchvision=TorchvisionImages(name="FakeData"))


def test_the_module_checks_its_sources(tmp_path):
    source = UnlabelledSpec(folder=FolderImages(root=str(tmp_path / "no")))
    with pytest.raises(DataError, match="is no folder"):
        build_data(DataSpec(), labels=False, unlabelled=source).check()
