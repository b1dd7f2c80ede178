"""What the day leaves to the night: rows of a product, and the tenths of the slow tests."""

from itertools import product

import pytest

from support.products import covering, tenth

ROWS = [dict(zip("abc", values, strict=True)) for values in product(range(5), range(3), range(2))]


def test_every_value_is_met_by_as_few_rows_as_the_longest_parameter_has():
    kept = [ROWS[number] for number in covering(ROWS)]
    assert {name: {row[name] for row in kept} for name in "abc"} == {
        "a": {0, 1, 2, 3, 4}, "b": {0, 1, 2}, "c": {0, 1},
    }  # fmt: skip
    assert len(kept) == 5


def test_pairs_that_belong_together_are_all_met():
    kept = [ROWS[number] for number in covering(ROWS, [("a", "b")])]
    assert {(row["a"], row["b"]) for row in kept} == set(product(range(5), range(3)))
    assert {row["c"] for row in kept} == {0, 1}
    assert len(kept) == 15


def test_ten_commits_run_every_slow_test_once():
    seconds = {f"test_{number}": 900 * (number % 4 == 0) for number in range(37)}
    tenths = [tenth(seconds, f"{commit:040x}") for commit in range(123, 133)]
    assert sorted(name for part in tenths for name in part) == sorted(seconds)
    assert {len(part) for part in tenths} == {3, 4}
    assert {sum(seconds[name] for name in part) for part in tenths} == {900}


@pytest.mark.product
@pytest.mark.parametrize("unhashable", [[1], [2], [3]])
@pytest.mark.parametrize("letter", "ab")
def test_this_product_is_cut_to_the_rows_that_cover_it(letter, unhashable, request):
    rows = [item for item in request.session.items if item.function is request.function]
    fast = [item for item in rows if not item.get_closest_marker("slow")]
    if len(rows) == 6:  # none was deselected
        assert len(fast) == 3
    assert len(fast) <= 3
