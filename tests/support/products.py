"""Whole products at night, by day the rows that cover them.

    @pytest.mark.product("kind derivative")
    def test_something(kind, derivative, rule): ...

keeps, of all rows of this test, enough to meet every value of every parameter and every pair of
values of `kind` and `derivative`; the other rows are `slow`. Without arguments: every value of
every parameter. Which rows these are depends on the rows alone, so it is the same for everyone.
"""

from itertools import chain

import pytest


def mostly_slow(rows, day):
    """The rows as parameters of a test, those slow whose numbers are not in `day`."""
    return [
        row
        if number in day
        else pytest.param(*row, marks=pytest.mark.slow)
        if isinstance(row, tuple)
        else pytest.param(row, marks=pytest.mark.slow)
        for number, row in enumerate(rows)
    ]


def covering(rows, together=()):
    """Numbers of the rows that cover all rows, each row a mapping of name -> value.

    Args:
        rows: all of them.
        together: tuples of names whose combinations count, besides each value by itself.
    """
    groups = [*([name] for name in chain.from_iterable(rows[:1])), *map(list, together)]
    holds = [{(*group, *(row[name] for name in group)) for group in groups} for row in rows]
    missing, found = set().union(*holds), []
    while missing:
        best = max(range(len(rows)), key=lambda i: len(holds[i] & missing))  # the first of these
        missing -= holds[best]
        found.append(best)
    return sorted(found)


def slow_rows(items):
    """The tests that their `product` marks leave to the night."""
    tests = {}
    for item in items:
        if item.get_closest_marker("product"):
            tests.setdefault(item.nodeid.partition("[")[0], []).append(item)
    found = []
    for rows in tests.values():
        together = [tuple(names.split()) for names in rows[0].get_closest_marker("product").args]
        # values may be unhashable, and are the same objects in every row
        params = [{k: id(v) for k, v in row.callspec.params.items()} for row in rows]
        kept = covering(params, together)
        found += [row for number, row in enumerate(rows) if number not in kept]
    return found


def tenth(seconds, commit):
    """Every tenth of the tests, from a place that the hash of a commit decides.

    Args:
        seconds: name -> how long it may take. In this order the long ones are dealt to different
            tenths, so that no tenth takes much longer than another.
        commit: hexadecimal.
    """
    names = sorted(seconds, key=lambda name: (-seconds[name], name))
    return set(names[int(commit, 16) % 10 :: 10])
