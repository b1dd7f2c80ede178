"""Runs that had other images than the others of their comparison are named."""

import pytest

from qat.report.page.sweep_page import write_report
from qat.report.runs.grouping import families_of
from qat.report.runs.other_data import other_data
from qat.report.runs.runs import read_runs
from qat.storage.data_record import FILE, PARTS, DataRecord, PartRecord, write_record


def record(*files):
    known = PartRecord(count=len(files), files=dict.fromkeys(files, (0, 9)))
    parts = dict.fromkeys(PARTS[:2], PartRecord(count=3)) | {"test": known}
    return DataRecord(name="image_folder", split="path", classes=("cat", "dog"), parts=parts)


@pytest.fixture
def runs(make_run, tmp_path):
    for seed in (1, 2, 3, 4):
        folder = make_run(f"s{seed}", seed=seed)
        if seed != 4:  # of an earlier version
            write_record(folder, record("a.png", "b.png"))
    return tmp_path / "runs"


def told(runs):
    (family,) = families_of(read_runs([runs]))
    return other_data(family)


def test_equal_data_need_no_word(runs):
    assert told(runs) == ""


def test_runs_on_other_images_are_named_and_said_why(runs, tmp_path):
    write_record(runs / "s2", record("a.png"))
    assert told(runs) == (
        "digits, lenet5: 1 of 3 runs had other images than runs/s1, so their numbers do not "
        "compare: runs/s2. Of runs/s2: test: b.png is gone."
    )
    page = write_report(read_runs([runs]), tmp_path / "out").read_text()
    assert "1 of 3 runs had other images than runs/s1" in page


def test_a_damaged_record_is_none(runs):
    (runs / "s2" / FILE).write_bytes(b"x")
    assert told(runs) == ""


def test_the_rule_of_the_split_tells_test_parts_apart(make_run, tmp_path):
    own = {"data.name": "image_folder", "data.root": "/data/d"}
    make_run("old", changes=own)
    make_run("said", changes=own | {"data.split": "index"})
    make_run("new", changes=own | {"data.split": "path"})
    found = families_of(read_runs([tmp_path / "runs"]))
    assert sorted(sum(len(g.runs) for g in family.groups) for family in found) == [1, 2]
