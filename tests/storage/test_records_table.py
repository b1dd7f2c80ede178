"""The table that grows, given several rows at once."""

import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qat.errors import QatError
from qat.storage.csv_table import GrowingCsv


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_table_of_several_rows_at_once_rewinds(tmp_path_factory, data):
    row = st.dictionaries(st.sampled_from("abc"), st.floats(), min_size=1)
    groups = data.draw(st.lists(st.lists(row, min_size=1, max_size=4), min_size=1, max_size=4))
    saved = data.draw(st.integers(0, len(groups)))
    straight, resumed = (tmp_path_factory.mktemp("t") / "table.csv" for _ in range(2))
    whole = GrowingCsv(straight, ["a"])
    for rows in groups:
        whole.append(rows)
    single = GrowingCsv(resumed, ["a"])
    for rows in groups[:saved]:
        for one in rows:  # row by row gives the same bytes
            single.append([one])
    position = single.position()
    for rows in groups[saved:]:
        single.append(rows)
    second = GrowingCsv(resumed, ["a"])
    second.rewind(position)
    for rows in groups[saved:]:
        second.append(rows)
    assert resumed.read_bytes() == straight.read_bytes()


@pytest.mark.parametrize("rows", [[], [{"a": 1}]], ids=["before-the-first-row", "after-it"])
@pytest.mark.parametrize("row", [{"a": 2}, {"a": 2, "b": 3}], ids=["known", "new-column"])
def test_a_folder_that_is_deleted_is_not_made_anew(tmp_path, rows, row):
    (tmp_path / "run").mkdir()
    table = GrowingCsv(tmp_path / "run" / "metrics.csv", ["a"])
    table.rewind()
    for known in rows:
        table.append([known])
    shutil.rmtree(tmp_path / "run")
    words = r"cannot write .*metrics\.csv: No such file or directory; free space and resume the run"
    with pytest.raises(QatError, match=words):
        table.append([row])
    assert not (tmp_path / "run").exists()


def test_a_file_that_is_deleted_alone_is_missed_too(tmp_path):
    table = GrowingCsv(tmp_path / "metrics.csv", ["a"])
    table.append([{"a": 1}])
    (tmp_path / "metrics.csv").unlink()
    with pytest.raises(QatError, match="cannot write"):
        table.append([{"a": 2, "b": 3}])
    assert not (tmp_path / "metrics.csv").exists()


def test_a_folder_that_is_not_there_yet_is_made(tmp_path):
    table = GrowingCsv(tmp_path / "a" / "b" / "metrics.csv", ["a"])
    table.append([{"a": 1}])
    assert (tmp_path / "a" / "b" / "metrics.csv").read_text() == "a\n1\n"
