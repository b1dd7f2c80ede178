"""What is written down of the images of a run, and parts that are held to it."""

import os
from dataclasses import replace

import pytest

from qat.data.record import record_of
from qat.data.registry import build_data
from qat.errors import DataError
from qat.spec.data import DataSpec
from qat.spec.unlabelled import Photographs, TaskImages, UnlabelledSpec
from qat.storage.data_changes import data_changes, sentence
from support.image_folders import write_pictures


def data_of(root, **run):
    options = DataSpec(name="image_folder", root=str(root), image_size=16, split="path")
    return build_data(options, **run)


@pytest.fixture
def root(tmp_path):
    return write_pictures(tmp_path / "d", {"cat": 10, "dog": 10})


def test_files_are_known_by_name_label_and_size(root):
    data = data_of(root)
    record = data.record()
    assert (record.name, record.split, record.classes) == ("image_folder", "path", ("cat", "dog"))
    assert [part.count for part in record.parts.values()] == [12, 4, 4]
    assert [os.fsencode(name) for name in record.parts["train"].files] == data.parts.train.names
    name, (label, size) = next(iter(record.parts["test"].files.items()))
    assert label == ("cat", "dog").index(name.partition("/")[0])
    assert size == (root / name).stat().st_size


def test_of_many_files_each_class_has_a_hash(root):
    parts, own = data_of(root).parts, {"name": "x", "split": "path", "classes": ("cat", "dog")}
    few = record_of(parts, **own, most=19)
    assert all(not part.files and len(part.hashes) == 2 for part in few.parts.values())
    assert record_of(parts, **own, most=20).parts["test"].files
    (root / "dog" / "more.png").symlink_to(root / "dog" / "001.png")
    now = record_of(data_of(root).parts, **own, most=19)
    assert "class dog has other files" in sentence(data_changes(few, now))
    assert "cat" not in sentence(data_changes(few, now))


@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("is_turned", [True, False])
def test_names_and_hashes_are_compared_by_the_names_of_each_class(root, labels, is_turned):
    own = {"name": "x", "split": "path", "classes": ("cat", "dog")}

    def told(names, hashes):
        pair = (hashes, names) if is_turned else (names, hashes)
        return data_changes(*pair)

    names, hashes = (record_of(data_of(root, labels=labels).parts, **own, most=m) for m in (20, 19))
    assert names.parts["test"].files
    assert hashes.parts["test"].hashes
    assert told(names, hashes) == {}
    # as many files of each class, one of them under another name
    part = names.parts["test"]
    gone = next(file for file in part.files if file.startswith("dog"))
    files = {("dog/z.png" if file == gone else file): known for file, known in part.files.items()}
    renamed = replace(names, parts=names.parts | {"test": replace(part, files=files)})
    assert told(renamed, hashes) == {"test": "class dog has other files"}


def test_hashes_without_labels_are_compared_as_one(root):
    own = {"name": "x", "split": "path", "classes": ("cat", "dog")}
    names = record_of(data_of(root).parts, **own)  # with labels
    hashes = record_of(data_of(root, labels=False).parts, **own, most=19)
    assert set(hashes.parts["train"].hashes) == {""}
    assert data_changes(names, hashes) == {}
    other = replace(hashes.parts["train"], hashes={"": "0" * 16})
    now = replace(hashes, parts=hashes.parts | {"train": other})
    assert sentence(data_changes(names, now)) == "train: other files"


def test_labels_that_nobody_read_leave_the_count(root):
    own = {"name": "x", "split": "path", "classes": ("cat", "dog")}
    names = record_of(data_of(root, labels=False).parts, **own)
    hashes = record_of(data_of(root).parts, **own, most=19)
    assert data_changes(names, hashes) == {}
    less = replace(hashes, parts=hashes.parts | {"train": replace(hashes.parts["train"], count=11)})
    assert sentence(data_changes(names, less)) == "train: 11 images instead of 12"


def test_built_in_sets_are_known_by_name_and_counts():
    record = build_data(DataSpec()).record()
    assert [part.count for part in record.parts.values()] == [1079, 359, 359]
    assert not any(part.files or part.hashes or part.source for part in record.parts.values())


def test_images_without_labels_are_known_without_them(root):
    record = data_of(root, labels=False).record()
    assert {label for label, _ in record.parts["train"].files.values()} == {None}
    assert None not in {label for label, _ in record.parts["test"].files.values()}
    photographs = UnlabelledSpec(task=TaskImages(), photographs=Photographs(patches=5))
    mixed = data_of(root, labels=False, unlabelled=photographs).record()
    assert mixed.parts["train"].source
    assert mixed.parts["train"].count == 17


def test_parts_are_held_to_a_record(root):
    record = data_of(root).record()
    gone = next(iter(record.parts["test"].files))
    (root / gone).unlink()
    for number in range(5):
        (root / "cat" / f"new{number}.png").symlink_to(root / "dog" / "001.png")
    free, held = data_of(root), data_of(root, before=record)
    assert len(data_changes(record, free.record())) == 3
    assert sentence(data_changes(record, held.record())) == f"test: {gone} is gone"
    assert held.parts.train.names == [os.fsencode(name) for name in record.parts["train"].files]
    without = data_of(root, before=record, labels=False)
    assert len(without.parts.train) == 12


def test_held_out_parts_stay_where_other_images_are_learned_from(root):
    own = {"labels": False, "unlabelled": UnlabelledSpec(photographs=Photographs(patches=5))}
    record = data_of(root, **own).record()
    for number in range(6):
        (root / "cat" / f"new{number}.png").symlink_to(root / "dog" / "001.png")
    assert data_changes(record, data_of(root, **own).record())
    held = data_of(root, **own, before=record)
    assert not data_changes(record, held.record())
    train, validation, test = (set(part.names) for part in held.labelled_parts)
    assert not train & (validation | test)


def test_a_part_of_which_nothing_is_left(root):
    record = data_of(root).record()
    for name in record.parts["validation"].files:
        (root / name).unlink()
    with pytest.raises(DataError, match=r"none of the 4 images of the run's validation part; br"):
        _ = data_of(root, before=record).parts
