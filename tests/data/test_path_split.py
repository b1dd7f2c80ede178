"""Parts of an image folder by path: one file less moves at most one other at each cut."""

import json
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from qat.data.registry import build_data
from qat.data.split import path_order
from qat.errors import DataError, SpecError
from qat.spec.check import config_hash
from qat.spec.data import DataSpec
from qat.spec.header import Header, header_from
from qat.spec.quant import QuantSpec
from support.image_folders import write_pictures

SHARES = (0.2, 0.2)
names = st.lists(st.binary(min_size=1, max_size=4), min_size=2, max_size=60, unique=True)


def parts_of(files, shares):
    """File -> number of its part, for files that begin with the letter of their class."""
    labels = torch.tensor([file[0] % 3 for file in files])
    order = path_order(labels, files, shares)
    return {files[index]: part for part, indices in enumerate(order) for index in indices}


@given(names, st.data(), st.sampled_from([SHARES, (0.1,), (0.3, 0.0, 0.4), ()]))
def test_one_file_less_moves_one_other_of_its_class_at_each_cut(files, draw, shares):
    gone = draw.draw(st.sampled_from(files))
    before = parts_of(files, shares)
    after = parts_of([file for file in files if file != gone], shares)
    moved = [file for file in after if after[file] != before[file]]
    assert {file[0] % 3 for file in moved} <= {gone[0] % 3}
    for cut in range(len(shares)):
        across = [f for f in moved if (before[f] > cut) != (after[f] > cut)]
        assert len(across) <= 1


@given(names)
def test_the_order_in_which_files_are_listed_does_not_matter(files):
    assert parts_of(files, SHARES) == parts_of(sorted(files), SHARES)


@pytest.mark.parametrize("count", range(1, 40))
def test_every_part_has_its_share_of_a_class(count):
    files = [f"{number}.png".encode() for number in range(count)]
    test, validation, train = path_order(torch.zeros(count, dtype=torch.int64), files, SHARES)
    assert sorted([*test, *validation, *train]) == list(range(count))
    assert len(train) >= 1
    if count >= 3:
        assert min(len(test), len(validation)) >= 1
    for part, share in ((test, 0.2), (validation, 0.2), (train, 0.6)):
        assert abs(len(part) - share * count) <= 1


def test_prefixes_of_a_part_hold_the_classes_in_proportion():
    files = [f"{number}.png".encode() for number in range(90)]
    labels = torch.tensor([0] * 60 + [1] * 30)
    train = path_order(labels, files, SHARES)[-1]
    for length in range(len(train)):
        assert abs(int(labels[train[:length]].sum()) - length / 3) <= 1


def test_the_rule_is_fixed_for_good():
    files = [f"cat/{number}.png".encode() for number in range(8)]
    order = path_order(torch.zeros(8, dtype=torch.int64), files, SHARES)
    assert [part.tolist() for part in order] == [[5, 0], [6], [7, 3, 4, 1, 2]]


def folder(root, counts):
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (9, 9), (number, 7, 7)).save(root / name / f"{number:03d}.png")
    return root


def parts(root, **options):
    data = build_data(DataSpec(name="image_folder", root=str(root), image_size=16, **options))
    found = data.parts
    return [set(part.names) for part in (found.train, found.validation, found.test)]


def test_a_folder_that_lies_elsewhere_has_the_same_parts(tmp_path):
    here = folder(tmp_path / "here", {"cat": 20, "dog": 9})
    there = shutil.copytree(here, tmp_path / "far" / "there")
    assert parts(here, split="path") == parts(there, split="path")


def test_recorded_runs_keep_their_rule(tmp_path):
    root = folder(tmp_path, {"cat": 20, "dog": 9})
    assert DataSpec(name="image_folder", root="x").split == "index"
    assert parts(root) != parts(root, split="path")
    (root / "cat" / "007.png").unlink()
    kept = parts(root)
    assert [len(part) for part in kept] == [16, 6, 6]


def test_a_config_without_the_new_options_keeps_its_hash():
    old = {"data": {"name": "image_folder", "root": "d"}}
    default = {"split": "index", "upright": False, "unreadable": "refuse", "scan": "auto"}
    new = {"data": old["data"] | default}
    assert config_hash(old) == config_hash(new)
    assert config_hash(old) != config_hash({"data": old["data"] | {"split": "path"}})


@pytest.mark.parametrize("split", ["index", "path"])
def test_no_part_may_be_empty(tmp_path, split):
    root = folder(tmp_path, {"cat": 1, "dog": 1})
    with pytest.raises(DataError, match=r"has 2 images, none of them in its validation part \(2/0"):
        parts(root, split=split)


def test_three_images_of_a_class_are_enough(tmp_path):
    root = folder(tmp_path, {"cat": 3, "dog": 1})
    assert [len(part) for part in parts(root, split="path")] == [2, 1, 1]


def test_built_in_sets_have_one_rule():
    with pytest.raises(SpecError, match=r"data\.split is for data=image_folder; got data\.name=d"):
        DataSpec(name="digits", split="path")


def test_indices_are_whole():
    order = path_order(torch.tensor([0, 1]), [b"a", b"b"], SHARES)
    assert all(part.dtype == np.int64 for part in order)


def test_shares_are_options(tmp_path):
    root = write_pictures(tmp_path, {"a": 20, "b": 40})
    assert [len(p) for p in parts(root, split="path")] == [36, 12, 12]
    few = {"split": "path", "val_share": 0.1, "test_share": 0.05}
    assert [len(p) for p in parts(root, **few)] == [51, 6, 3]
    with pytest.raises(SpecError, match=r"val_share=0\.85 and .*leave nothing to train on"):
        DataSpec(name="image_folder", root="x", val_share=0.85)
    with pytest.raises(SpecError, match=r"data\.val_share must be a number > 0 and < 1"):
        DataSpec(name="image_folder", root="x", val_share=0.0)


def test_a_file_keeps_to_the_shares_of_its_run():
    told = {"data": "image_folder", "split": "path", "val_share": 0.1}
    header = Header(quant=QuantSpec(), **told)
    again = header_from(json.loads(header.to_json()))
    assert (again.val_share, again.test_share) == (0.1, None)
    assert "test_share" not in header.to_json()
