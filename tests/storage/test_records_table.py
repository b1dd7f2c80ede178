"""The table that grows, given several rows at once."""

from hypothesis import given, settings
from hypothesis import strategies as st

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
