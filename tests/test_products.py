"""What the day leaves to the night: rows of a product, and the tenths of the slow tests."""

from itertools import product
from types import SimpleNamespace

import pytest

from support.products import covering, slow_rows, tenth

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
    names = {f"test_{number}" for number in range(37)}
    tenths = [tenth(names, f"{commit:040x}") for commit in range(123, 133)]
    assert sorted(name for part in tenths for name in part) == sorted(names)
    assert {len(part) for part in tenths} == {3, 4}


class Row:
    """As much of a test as `slow_rows` looks at."""

    def __init__(self, name, mark, **indices):
        self.nodeid, self.mark = f"{name}[{'-'.join(map(str, indices.values()))}]", mark
        self.callspec = SimpleNamespace(indices=indices)

    def get_closest_marker(self, name):
        return self.mark and {"product": self.mark.mark}.get(name)


def test_each_product_is_cut_by_itself_and_other_tests_are_left_alone():
    mark = pytest.mark.product
    cut = [Row("one", mark, a=a, b=b) for a in range(2) for b in range(3)]
    paired = [Row("two", mark("a b"), a=a, b=b) for a in range(2) for b in range(3)]
    whole = [Row("three", None, a=a, b=b) for a in range(2) for b in range(3)]
    slow = slow_rows([*cut, *paired, *whole])
    assert len(slow) == 3
    assert set(slow) < set(cut)
