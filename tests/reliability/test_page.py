"""The page of promises names tests that there are, and its numbers are those of the tests."""

import ast
import re

import pytest
from reliability import test_kills

from support import ROOT

PAGE = (ROOT / "docs" / "reliability.md").read_text()
ROWS = re.findall(r"^\| (\d+) \| (.+) \| (.+) \| (.+) \|$", PAGE, re.MULTILINE)
HOLDS = re.compile(r"`(tests/[\w/]+\.py)(?:::(\w+))?`")


def functions(path):
    return {
        node.name
        for node in ast.walk(ast.parse((ROOT / path).read_text()))
        if isinstance(node, ast.FunctionDef)
    }


def test_rows_are_numbered_without_a_hole():
    assert [int(row[0]) for row in ROWS] == list(range(1, 24))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_each_row_is_held_by_tests_that_there_are(row):
    assert row[3] == ", ".join(match.group() for match in HOLDS.finditer(row[3]))
    for path, name in HOLDS.findall(row[3]):
        assert not name or name in functions(path), name


def test_figures_are_there():
    measured = PAGE.partition("## Measured")[2]
    rows = re.findall(r"^\| (.+) \| (.+) \|$", measured, re.MULTILINE)
    assert len(rows) >= 5
    assert all(re.search(r"\d", figure) for _, figure in rows[1:])


def test_kills_are_as_many_as_the_page_says():
    kills = len(test_kills.METHODS) * (len(test_kills.ONE) + len(test_kills.TWO))
    assert f"{len(test_kills.METHODS)} methods, one process and two, {kills} kills" in ROWS[0][1]
