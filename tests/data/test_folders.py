"""Tiny-ImageNet, ImageNet and users' image folders, written to disk and read back."""

import io
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from qat.data.module import first_batches
from qat.data.registry import build_data
from qat.errors import DataError, SpecError
from qat.spec.data import DataSpec


def picture(value, size=(20, 16)):
    return Image.new("RGB", size, (value % 256, value // 256, 77))


def jpeg(value=0, size=(20, 16)):
    buffer = io.BytesIO()
    picture(value, size).save(buffer, "JPEG")
    return buffer.getvalue()


def fill(folder, count, ending="png", start=0):
    """Pictures with the values start, start + 1, ... in sorted order of their names."""
    folder.mkdir(parents=True)
    for number in range(count):
        picture(start + number).save(folder / f"{number:03d}.{ending}")


def values(images):
    """The numbers that `fill` wrote, of each image."""
    pixels = [np.asarray(images[i][0])[0, 0].astype(int) for i in range(len(images))]
    return [int(p[0] + 256 * p[1]) for p in pixels]


def prepared(root, name="image_folder", **options):
    data = build_data(DataSpec(name=name, root=str(root), batch_size=4, **options))
    data.prepare()
    return data


@pytest.fixture
def flat(tmp_path):
    fill(tmp_path / "dog" / "nested" / "deep", 10)
    fill(tmp_path / "cat", 30, "PNG", start=100)
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    return tmp_path


def test_a_flat_folder_is_split_60_20_20(flat):
    data = prepared(flat, class_weights="balanced", image_size=32)
    assert data.classes == ("cat", "dog")
    parts = data.parts
    assert parts.train.labels.bincount().tolist() == [18, 6]
    assert parts.validation.labels.bincount().tolist() == [6, 2]
    assert parts.test.labels.bincount().tolist() == [6, 2]
    seen = [v for part in (parts.train, parts.validation, parts.test) for v in values(part)]
    assert sorted(seen) == [*range(10), *range(100, 130)]
    for part in (parts.train, parts.validation, parts.test):
        names = [int(v < 100) for v in values(part)]
        assert names == part.labels.tolist()
    again = prepared(flat).parts
    assert values(again.test) == values(parts.test)
    torch.testing.assert_close(data.class_weights(), torch.tensor([24 / 36, 24 / 12]))
    image, label = next(iter(data.train_dataloader()))
    assert (image.shape, image.dtype, label.dtype) == ((4, 3, 32, 32), torch.float32, torch.int64)
    assert data.sample_batch()[0].shape == (4, 3, 32, 32)


def test_balanced_sampling_draws_every_class_equally(flat):
    data = prepared(flat, sampling="balanced", image_size=8)
    loader = data.train_dataloader()
    for _ in range(2):
        labels = torch.cat([label for _, label in loader])
        assert labels.bincount().tolist() == [12, 12]
    assert data.batches_per_epoch == len(loader) == 6
    first = torch.cat([label for _, label in first_batches(data, 6)])
    assert first.bincount().tolist() == [12, 12]
    evaluated = torch.cat([label for _, label in data.val_dataloader()])
    assert evaluated.bincount().tolist() == [6, 2]


def test_rare_classes_count_once():
    with pytest.raises(SpecError, match="would count rare classes twice; take one"):
        DataSpec(sampling="balanced", class_weights="balanced")
    with pytest.raises(SpecError, match=r"data\.sampling=balanced counts labels; use once"):
        build_data(DataSpec(sampling="balanced"), labels=False)


@pytest.mark.parametrize(
    ("parts", "sizes"), [(("val",), [36, 6, 4]), (("val", "test"), [40, 6, 6])]
)
def test_given_parts_are_kept(tmp_path, parts, sizes):
    for number, name in enumerate(("cat", "dog")):
        fill(tmp_path / "train" / name, 20, start=20 * number)
        for offset, part in enumerate(parts):
            fill(tmp_path / part / name, 3, start=500 + 100 * offset + 10 * number)
    loaded = prepared(tmp_path).parts
    assert [len(loaded.train), len(loaded.validation), len(loaded.test)] == sizes
    assert sorted(values(loaded.validation)) == [500, 501, 502, 510, 511, 512]
    if "test" in parts:
        assert sorted(values(loaded.test)) == [600, 601, 602, 610, 611, 612]
    else:
        assert sorted(values(loaded.train) + values(loaded.test)) == list(range(40))
        assert loaded.test.labels.bincount().tolist() == [2, 2]


def test_other_classes_in_val_are_refused(tmp_path):
    for folder in ("train/cat", "train/dog", "val/cat", "val/wolf"):
        fill(tmp_path / folder, 2)
    with pytest.raises(DataError, match=r"same classes; only one of them has dog, wolf"):
        prepared(tmp_path)


def test_an_empty_class_is_refused(flat):
    (flat / "emu").mkdir()
    with pytest.raises(DataError, match=r"emu holds no image .*; add images or remove it"):
        prepared(flat)


def test_a_class_without_training_image_has_no_balanced_weight(flat):
    data = prepared(flat, class_weights="balanced")
    parts = data.parts
    only_cats = parts.train.select(np.flatnonzero(parts.train.labels.numpy() == 0))
    data._parts = type(parts)(only_cats, parts.validation, parts.test)
    with pytest.raises(DataError, match=r"data\.class_weights=balanced .* 'dog' has none"):
        data.class_weights()


def write_tiny(root):
    wnids = [f"n{i:08d}" for i in (7, 3, 5, 1)]
    (root / "wnids.txt").write_text("\n".join(wnids) + "\n")
    words = [f"{w}\tword {w[-1]}, synonym" for w in sorted([*wnids, "n00000009"])]
    (root / "words.txt").write_text("\n".join(words))
    for number, wnid in enumerate(sorted(wnids)):
        images = root / "train" / wnid / "images"
        images.mkdir(parents=True)
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text("x")
        for i in range(20):
            (images / f"{wnid}_{i}.JPEG").write_bytes(jpeg(number, (64, 64)))
    (root / "val" / "images").mkdir(parents=True)
    rows = []
    for i, wnid in enumerate(wnids * 2):
        (root / "val" / "images" / f"val_{i}.JPEG").write_bytes(jpeg(i, (64, 64)))
        rows.append(f"val_{i}.JPEG\t{wnid}\t0\t0\t63\t63")
    (root / "val" / "val_annotations.txt").write_text("\n".join(rows) + "\n")


@pytest.mark.parametrize("inner", ["", "tiny-imagenet-200"])
def test_tiny_imagenet(tmp_path, inner):
    home = tmp_path / inner
    home.mkdir(exist_ok=True)
    write_tiny(home)
    assert build_data(DataSpec(name="tiny_imagenet")).num_classes == 200
    data = prepared(tmp_path, "tiny_imagenet")
    assert data.classes == ("word 1", "word 3", "word 5", "word 7")
    parts = data.parts
    assert [len(parts.train), len(parts.validation), len(parts.test)] == [72, 8, 8]
    assert parts.validation.labels.bincount().tolist() == [2] * 4
    assert parts.test.labels.tolist() == [3, 1, 2, 0] * 2
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        assert next(iter(loader))[0].shape == (4, 3, 64, 64)
    smaller = prepared(tmp_path, "tiny_imagenet", image_size=32)
    assert next(iter(smaller.train_dataloader()))[0].shape == (4, 3, 32, 32)


def test_tiny_imagenet_with_an_unknown_class(tmp_path):
    write_tiny(tmp_path)
    with open(tmp_path / "val" / "val_annotations.txt", "a") as file:
        file.write("val_0.JPEG\tn99999999\t0\t0\t63\t63\n")
    with pytest.raises(DataError, match=r"Tiny-ImageNet .* is missing or damaged .*n99999999"):
        prepared(tmp_path, "tiny_imagenet")


def test_imagenet(tmp_path):
    data = jpeg(size=(40, 30))
    for number in range(1000):
        for part, count in (("train", 2), ("val", 1)):
            folder = tmp_path / part / f"n{number:08d}"
            folder.mkdir(parents=True)
            for i in range(count):
                (folder / f"{i}.JPEG").write_bytes(data)
    module = prepared(tmp_path, "imagenet")
    parts = module.parts
    assert [len(parts.train), len(parts.validation), len(parts.test)] == [1980, 20, 1000]
    assert parts.test.labels.tolist() == list(range(1000))
    assert module.num_classes == len(module.classes) == 1000
    assert next(iter(module.train_dataloader()))[0].shape == (4, 3, 224, 224)
    assert next(iter(module.val_dataloader()))[0].shape == (4, 3, 224, 224)
    shutil.rmtree(tmp_path / "train" / "n00000000")
    with pytest.raises(DataError, match=r"needs 1000 class folders, .* has 999; use data=image_f"):
        prepared(tmp_path, "imagenet")
