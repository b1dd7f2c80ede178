"""The scan of an image folder before training: found, told in one line, skipped, kept."""

import gzip
import json
import os
import shutil

import pytest
import torch
from PIL import Image

from qat.data import scan as module
from qat.data.registry import build_data
from qat.data.scan import scan
from qat.errors import DataError, SpecError
from qat.spec.data import DataSpec
from support.image_folders import write_pictures


@pytest.fixture
def root(tmp_path):
    return write_pictures(tmp_path / "d", {"cat": 12, "dog": 12, "eel": 4})


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "qat" / "scans"


def data_of(root, **options):
    own = {"image_size": 16, "split": "path", "workers": 0} | options
    return build_data(DataSpec(name="image_folder", root=str(root), **own))


def cut(path):
    path.write_bytes(path.read_bytes()[:-40])


def names(data):
    parts = data.parts
    return [list(part.names) for part in (parts.train, parts.validation, parts.test)]


def test_a_sound_folder_is_told_in_one_line(root):
    (root / "eel").rename(root.parent / "eel")
    (line,) = data_of(root).examined()
    assert line.startswith("2 classes, 14/6/4 images; 24 files decoded in 0.")
    assert build_data(DataSpec()).examined() == ["10 classes, 1079/359/359 images"]


def test_what_is_worth_a_look_is_told_in_one_line(root):
    Image.new("RGB", (9, 9)).save(root / "cat" / "000.png", "JPEG")
    for name in ("a.HEIC", "b.heic", "c.txt", "c2.txt", "c3.txt", ".hidden.txt", "noending"):
        (root / "dog" / name).touch()
    (root / "readme.txt").touch()  # of no class
    _, note = data_of(root).examined()
    told = note.split("; ")
    assert told[0] == f"of another format than their names say: 1 file, {root}/cat/000.png (JPEG)"
    assert told[1] == "no images by their names: 6 files, .txt (3), .heic (2), no ending (1)"
    assert told[2] == "classes of fewer than 10 images: eel (4)"


def test_labels_are_not_counted_where_none_is_to_be_read(root):
    options = data_of(root).options
    assert len(data_of(root).examined()) == 2
    assert len(build_data(options, labels=False).examined()) == 1


def test_unreadable_files_are_refused_before_training_all_at_once(root):
    cut(root / "cat" / "003.png")
    (root / "dog" / "004.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"^2 of 28 image files cannot be read: /.*\.png \(") as e:
        data_of(root).examined()
    for words in ("cat/003.png", "dog/004.png", "leave them out by data.unreadable=skip"):
        assert words in str(e.value)


def test_skipped_files_move_no_other(root):
    whole = names(data_of(root))
    cut(root / "cat" / "003.png")
    cut(root / "dog" / "004.png")
    data = data_of(root, unreadable="skip")
    gone = {b"cat/003.png", b"dog/004.png"}
    assert names(data) == [[name for name in part if name not in gone] for part in whole]
    line, note = data.examined()
    counts = "/".join(str(len(part)) for part in names(data))
    assert line.startswith(f"3 classes, {counts} images; 28 files decoded in ")
    assert note.startswith("unreadable and left out: 2 files, ")
    with pytest.raises(SpecError, match=r"data\.unreadable=skip must find them; use data\.scan=a"):
        data_of(root, unreadable="skip", scan="none")


def test_a_header_does_not_tell_that_a_file_is_cut_off(root, monkeypatch):
    cut(root / "cat" / "003.png")
    (root / "dog" / "004.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"1 of 28 image files cannot be read: .*dog/004"):
        data_of(root, scan="headers").examined()
    monkeypatch.setattr(module, "DECODED", 27)
    with pytest.raises(DataError, match="1 of 28 image files"):
        data_of(root).examined()
    with pytest.raises(DataError, match="2 of 28 image files"):
        data_of(root, scan="decode").examined()
    assert len(data_of(root, scan="none").examined()) == 1


def test_workers_see_the_same_and_the_run_draws_the_same(root, monkeypatch):
    monkeypatch.setattr(module, "_FEW", 0)
    cut(root / "cat" / "003.png")
    paths = sorted(str(path) for path in root.rglob("*.png"))
    before = torch.get_rng_state()
    found = [scan(paths, "decode", workers=workers).seen for workers in (0, 2)]
    assert found[0] == found[1]
    assert torch.equal(before, torch.get_rng_state())


def test_a_long_scan_is_kept_and_only_new_files_are_read_again(root, cache, monkeypatch):
    paths = sorted(str(path) for path in root.rglob("*.png"))
    scan(paths, "decode")
    assert not cache.exists()
    monkeypatch.setattr(module, "_WORTH_KEEPING", 0.0)
    first = scan(paths, "decode")
    assert scan(paths, "decode").known == 28
    assert scan(paths, "headers").known == 0
    cut(root / "cat" / "003.png")
    again = scan(paths, "decode")
    assert again.known == 27
    assert list(again.problems) == [str(root / "cat" / "003.png")]
    assert "28 files decoded in 0.0 s, 27 of them in an earlier scan" in again.cost
    assert scan(paths, "decode").problems == again.problems
    shutil.rmtree(root.parent / "cache")
    assert scan(paths[1:], "decode").known == 0
    assert first.problems == {}


@pytest.mark.parametrize("kind", ["empty", "text", "list", "deep"])
def test_a_damaged_cache_is_no_cache(root, cache, monkeypatch, kind):
    monkeypatch.setattr(module, "_WORTH_KEEPING", 0.0)
    paths = sorted(str(path) for path in root.rglob("*.png"))
    scan(paths, "decode")
    (kept,) = cache.iterdir()
    packed = {"list": b"[]", "deep": 9999 * b"["}
    kept.write_bytes(gzip.compress(packed[kind]) if kind in packed else kind[:-5].encode())
    assert scan(paths, "decode").known == 0
    kept.write_bytes(gzip.compress(json.dumps({path: [1, 2, 3] for path in paths}).encode()))
    assert scan(paths, "decode").known == 0


def test_names_that_a_terminal_would_obey_are_shown_harmless(root):
    os.rename(root / "cat" / "003.png", root / "cat" / "\x1b[2J.png")
    cut(root / "cat" / "\x1b[2J.png")
    with pytest.raises(DataError) as caught:
        data_of(root).examined()
    assert str(caught.value).isprintable()
