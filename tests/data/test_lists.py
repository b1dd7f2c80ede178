"""Images of the user's own by lists and tables: parts, carving, scan and record."""

import csv

import numpy as np
import pytest

from qat.data.registry import build_data
from qat.errors import DataError
from qat.spec.data import DataSpec
from support.image_folders import write_pictures


@pytest.fixture
def root(tmp_path):
    """Forty pictures of each of two classes, in folders that are not their classes."""
    write_pictures(tmp_path / "all", {"a": 40, "b": 40})
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "label"])
        for number in range(40):
            rows.writerow([f"all/a/{number:03d}.png", "zebra"])
            rows.writerow([f"all/b/{number:03d}.png", "ant"])
    return tmp_path


def data_of(root, **options):
    data = build_data(DataSpec(name="image_folder", root=str(root), split="path", **options))
    data.prepare()
    return data


def named(root, name, paths):
    (root / name).write_text("\n".join(paths))
    return {name: name}


def sizes(data):
    return [part.labels.bincount().tolist() for part in data.labelled_parts]


def test_a_table_is_carved_as_folders_are(root):
    data = data_of(root, labels="labels.csv")
    assert data.classes == ("ant", "zebra")
    assert sizes(data) == [[24, 24], [8, 8], [8, 8]]
    for part in data.labelled_parts:
        assert [name.startswith(b"all/a") for name in part.names] == part.labels.bool().tolist()
    folders = data_of(root / "all", image_size=12)
    tails = [[n.removeprefix(b"all/") for n in part.names] for part in data.labelled_parts]
    assert sum(map(len, tails)) == sum(map(len, folders.labelled_parts)) == 80


@pytest.mark.parametrize(
    ("lists", "train", "held"),
    [
        ({"train_list": 30}, 18, (6, 6)),
        ({"train_list": 20, "val_list": 5}, 18, (5, 2)),
        ({"train_list": 20, "test_list": 5}, 16, (4, 5)),
        ({"train_list": 20, "val_list": 5, "test_list": 4}, 20, (5, 4)),
    ],
)
@pytest.mark.parametrize("labels", [None, "labels.csv"])
def test_parts_that_no_list_has_are_carved_out_of_training(root, lists, train, held, labels):
    options, start = {}, 0
    home = root / "all" if labels is None else root
    for key, count in lists.items():
        paths = [f"{c}/{n:03d}.png" for c in "ab" for n in range(start, start + count)]
        options |= named(home, key, [p if labels is None else f"all/{p}" for p in paths])
        start += count
    data = data_of(home, labels=labels, **options)
    assert sizes(data) == [[n, n] for n in (train, *held)]
    names = [name for part in data.labelled_parts for name in part.names]
    assert len(set(names)) == len(names) == 2 * start


def test_the_order_in_a_list_moves_no_image(root):
    paths = [f"{c}/{n:03d}.png" for c in "ab" for n in range(40)]
    one = data_of(root / "all", **named(root / "all", "train_list", paths))
    two = data_of(root / "all", **named(root / "all", "train_list", paths[::-1]))
    for part, other in zip(one.labelled_parts, two.labelled_parts, strict=True):
        assert part.names == other.names


def test_a_small_part_may_lack_a_class(root):
    data = data_of(root, labels="labels.csv", **named(root, "val_list", ["all/a/001.png"]))
    assert sizes(data)[1] == [0, 1]
    assert data.num_classes == 2


def test_listed_images_are_scanned_and_recorded(root):
    (root / "all" / "a" / "notes.txt").touch()
    (root / "all" / "a" / "000.png").write_bytes(b"no image")
    data = data_of(root, labels="labels.csv")
    with pytest.raises(DataError, match=r"1 of 80 image files cannot be read: .*a/000\.png"):
        data.examined()
    told = data_of(root, labels="labels.csv", unreadable="skip")
    assert "unreadable and left out: 1 file" in told.examined()[1]
    assert "txt" not in told.examined()[1]  # lists have no other files
    record = told.record()
    assert record.classes == ("ant", "zebra")
    assert all(name.startswith("all/") for name in record.parts["train"].files)


def test_a_run_that_goes_on_keeps_to_its_parts(root):
    record = data_of(root, labels="labels.csv", test_share=0.1).record()
    held = build_data(
        DataSpec(name="image_folder", root=str(root), labels="labels.csv", split="path"),
        before=record,
    )
    names = [part.names for part in held.labelled_parts]
    assert names == [[n.encode() for n in part.files] for part in record.parts.values()]


def test_images_are_upright_as_in_folders(root):
    data = data_of(root, labels="labels.csv", upright=True)
    assert all(part.is_upright for part in data.labelled_parts)
    assert np.asarray(data.parts.train[0][0]).shape == (12, 12, 3)
