"""The record of a run's data: written, read, compared; damaged ones are refused in one line."""

import gzip
import json

import pytest

from qat.errors import CheckpointError
from qat.storage.data_changes import data_changes, sentence
from qat.storage.data_record import FILE, DataRecord, PartRecord, read_record, write_record

FILES = {
    "train": {"cat/1.png": (0, 10), "cat/2.png": (0, 20), "dog/1.png": (1, 30)},
    "validation": {"cat/3.png": (0, 11), "dog/2.png": (1, 31)},
    "test": {"cat/4.png": (0, 12), "dog/3.png": (1, 32)},
}


def record(files=FILES, *, classes=("cat", "dog"), name="image_folder"):
    parts = {part: PartRecord(count=len(known), files=known) for part, known in files.items()}
    return DataRecord(name=name, split="path", classes=classes, parts=parts)


def counts(*numbers):
    parts = dict(zip(FILES, (PartRecord(count=n) for n in numbers), strict=True))
    return DataRecord(name="digits", split="index", classes=("0", "1"), parts=parts)


def test_what_is_written_is_read(tmp_path):
    odd = {**FILES, "test": {"b\udcff\n/\u2603.png": (1, 5), "cat/9.png": (None, -1)}}
    write_record(tmp_path, record(odd))
    assert read_record(tmp_path) == record(odd)
    first = (tmp_path / FILE).read_bytes()
    write_record(tmp_path, record(odd))
    assert (tmp_path / FILE).read_bytes() == first


def test_a_run_without_a_record(tmp_path):
    assert read_record(tmp_path) is None


CONTENT = {"name": "x", "split": "path", "classes": ["a"], "parts": {}}
BAD = {
    "empty": b"",
    "text": b"no gzip",
    "cut": gzip.compress(json.dumps(CONTENT).encode())[:-9],
    "no_json": gzip.compress(b"{"),
    "a_list": gzip.compress(b"[]"),
    "no_parts": gzip.compress(json.dumps(CONTENT).encode()),
    "deep": gzip.compress(b"[" * 100_000),
    "large": gzip.compress(b" " * 100_000_001),
    "wrong_type": gzip.compress(json.dumps(CONTENT | {"name": ["x\x1b"]}).encode()),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_damaged_record_is_refused_in_one_line(tmp_path, kind):
    (tmp_path / FILE).write_bytes(BAD[kind])
    with pytest.raises(CheckpointError, match=r"data\.json\.gz cannot be read \(.*restore it") as e:
        read_record(tmp_path)
    assert str(e.value).isprintable()


def moved(**changes):
    """FILES with other content of some parts."""
    return record({**FILES, **changes})


def test_equal_data_have_no_changes():
    assert data_changes(record(), record()) == {}


CHANGES = {
    "another data set": (record(name="x"), "data=x instead of image_folder"),
    "classes": (record(classes=("dog", "eel")), "class cat is gone, class eel is new"),
    "order": (record(classes=("dog", "cat")), "the classes are in another order"),
    "gone": (moved(test={"cat/4.png": (0, 12)}), "test: dog/3.png is gone"),
    "new": (
        moved(test={**FILES["test"], "a": (0, 1), "b": (0, 1), "c": (1, 1), "d": (1, 1)}),
        "test: 4 files are new (a, b, c, ...)",
    ),
    "moved": (
        record(
            {
                "train": {"cat/1.png": (0, 10), "dog/1.png": (1, 30)},
                "validation": FILES["validation"],
                "test": {**FILES["test"], "cat/2.png": (0, 20)},
            }
        ),
        "test: cat/2.png was in the run's training part",
    ),
    "size": (moved(train={**FILES["train"], "cat/1.png": (0, 9)}), "train: cat/1.png has another"),
    "label": (moved(test={**FILES["test"], "cat/4.png": (1, 12)}), "test: cat/4.png has another c"),
    "control": (moved(test={**FILES["test"], "\x1b[2J": (0, 1)}), "test: ?[2J is new"),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_the_sentence_names_what_changed(kind):
    now, words = CHANGES[kind]
    assert sentence(data_changes(record(), now)).startswith(words)


def test_built_in_sets_are_known_by_their_counts():
    assert data_changes(counts(6, 2, 2), counts(6, 2, 2)) == {}
    found = data_changes(counts(6, 2, 2), counts(5, 2, 3))
    assert sentence(found) == "train: 5 images instead of 6; test: 3 images instead of 2"
    assert list(data_changes(counts(6, 2, 2), counts(5, 2, 3), parts=["test"])) == ["test"]


def test_labels_that_were_not_read_are_not_compared():
    free = {name: (None, size) for name, (_, size) in FILES["train"].items()}
    assert data_changes(moved(train=free), record()) == {}


def test_too_many_files_are_known_by_class():
    def hashed(**hashes):
        many = PartRecord(count=9, hashes={"cat": "1", "dog": "2"} | hashes)
        parts = dict.fromkeys(FILES, many)
        return DataRecord(name="x", split="path", classes=("cat", "dog"), parts=parts)

    assert data_changes(hashed(), hashed()) == {}
    found = data_changes(hashed(), hashed(dog="3"), parts=["train"])
    assert found == {"train": "class dog has other files"}
