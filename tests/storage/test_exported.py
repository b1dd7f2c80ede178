"""What is known of exported files: kept by name, gone with the file, nothing from damaged ones."""

import json

import pytest

from qat.errors import CheckpointError
from qat.storage.exported import exported_files, note_file, note_latency


def written(folder, name, size):
    path = folder / name
    path.write_bytes(b"x" * size)
    note_file(path, {"form": "fast", "bytes": size})
    return path


def test_files_are_noted_beside_each_other(tmp_path):
    written(tmp_path, "a.onnx", 3)
    written(tmp_path, "b.onnx", 4)
    note_latency(tmp_path, "a.onnx", [{"batch": 1}])
    assert exported_files(tmp_path) == {
        "a.onnx": {"form": "fast", "bytes": 3, "latency": [{"batch": 1}]},
        "b.onnx": {"form": "fast", "bytes": 4},
    }
    with pytest.raises(CheckpointError, match=r"c\.onnx was written anew"):
        note_latency(tmp_path, "c.onnx", [])
    written(tmp_path, "a.onnx", 5)  # another file, of which no latency is known
    assert exported_files(tmp_path)["a.onnx"] == {"form": "fast", "bytes": 5}


def test_a_file_that_went_or_became_another_is_not_told_of(tmp_path):
    written(tmp_path, "a.onnx", 3).unlink()
    written(tmp_path, "b.onnx", 4).write_bytes(b"other")
    written(tmp_path, "c.onnx", 5)
    assert list(exported_files(tmp_path)) == ["c.onnx"]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{",
        "null",
        '{"a.onnx": 3}',
        '{"a.onnx": {}}',
        '{"../x": {"bytes": 1}}',
        '{"gone.onnx": {}}',
    ],
)
def test_what_is_damaged_tells_nothing(tmp_path, content):
    (tmp_path / "a.onnx").write_bytes(b"")
    (tmp_path / "files.json").write_text(content)
    assert exported_files(tmp_path) == {}


def test_a_folder_without_the_file_tells_nothing(tmp_path):
    assert exported_files(tmp_path / "nowhere") == {}
    written(tmp_path, "a.onnx", 1)
    assert json.loads((tmp_path / "files.json").read_text()).keys() == {"a.onnx"}
