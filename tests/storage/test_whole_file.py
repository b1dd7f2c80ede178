"""Text files that are whole or not there."""

import os
import stat
import threading
from pathlib import Path

import pytest

from qat.storage.atomic import discard_parts, whole_file, write_whole


def test_it_replaces_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "a.json"
    for text in ("one\n", "två \udcff\n"):  # what UTF-8 cannot hold becomes a question mark
        write_whole(path, text)
    assert path.read_text(encoding="utf-8") == "två ?\n"
    assert list(tmp_path.iterdir()) == [path]


def test_what_was_there_stays_where_it_cannot_be_replaced(tmp_path):
    path = tmp_path / "a.json"
    path.mkdir()
    with pytest.raises(OSError, match=r"a\.json"):
        write_whole(path, "text")
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(OSError, match="nowhere"):
        write_whole(tmp_path / "nowhere" / "a.json", "text")


def test_the_bytes_reach_the_disk_before_the_name_does(tmp_path, monkeypatch):
    done, sync, replace = [], os.fsync, Path.replace

    def recording_sync(file):
        found = os.fstat(file)
        done.append("folder" if stat.S_ISDIR(found.st_mode) else found.st_size)
        sync(file)

    def recording_replace(path, target):
        done.append("renamed")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", recording_sync)
    monkeypatch.setattr(Path, "replace", recording_replace)
    write_whole(tmp_path / "a.json", "text")
    assert done == [len("text"), "renamed", "folder"]


def test_writers_at_once_do_not_mix(tmp_path):
    path, texts = tmp_path / "a.bin", [bytes([65 + k]) * (1 << 18) for k in range(4)]

    def write(text):
        for _ in range(5):
            write_whole(path, text)

    threads = [threading.Thread(target=write, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_bytes() in texts
    with whole_file(path) as one, whole_file(path) as another:
        one.write(b"one")
        another.write(b"another")
    assert path.read_bytes() == b"one"  # it ended last
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_writer_left_is_removed_and_nothing_else(tmp_path):
    (tmp_path / "last").mkdir()
    kept = [tmp_path / ".a.part", tmp_path / "a.0123456789abcdef.part", tmp_path / "last"]
    for path in (*kept[:2], tmp_path / "last" / ".step=1.ckpt.0123456789abcdef.part"):
        path.write_bytes(b"half")
    discard_parts(tmp_path)
    assert sorted(tmp_path.rglob("*")) == sorted(kept)
