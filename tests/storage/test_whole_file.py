"""Text files that are whole or not there."""

import pytest

from qat.storage.atomic import write_whole


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
