"""Overrides: any text reaches the config as it is, and what Hydra reads stays as it is typed."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given
from hypothesis import strategies as st

from qat.spec.overrides import as_override, quoted, unquoted, with_quoted_paths

PARSER = OverridesParser.create()


def parsed(override):
    (found,) = PARSER.parse_overrides(with_quoted_paths([override]))
    return found


PATHS = [
    "/data/p (2012)", "/data/#x", "/data/a&b", "/data/名前", "é.pt", "~/x", "a!b", "a;b", "a<b>",
    "a^b`", "runs/step=00000042.ckpt", "a[1].pt", "/data/{a}", "it's/here", 'the "best"',
    "p (2012)/x", "C:\\dir\\x=1", "ends#\\",
    'a\\"b', "p(1)", "a: b=c", "a\tb#", "str(a).png", "a)b",
]  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_paths_reach_the_config(path):
    assert parsed(f"data.root={path}").value() == path
    assert parsed(f"++data.root={path}").value() == path


TAKEN = [
    "seed=1,2", "x=null", "x=", "x=true", "x=1e-3", "x=[a,b]", "x={a: 1}", "x=choice(1,2)",
    "x=range(1,5)", "x=glob(*)", "x=a,[1]", 'x="a b"', "x='a'", "~x", "x=/data/a b.c",
    "x=a\\ \\(b\\)", "x=${oc.env:HOME,me}/x", "x=runs/${now:%Y}", "x='a','b'", "x=int(3)",
    "x=a: b", "x=sort (1,2)",
]  # fmt: skip


@pytest.mark.parametrize("override", TAKEN)
def test_what_is_read_stays_as_it_is_typed(override):
    assert with_quoted_paths([override]) == [override]
    PARSER.parse_overrides([override])


@pytest.mark.parametrize("name", ["a#1", "步"])
def test_a_lookup_beside_what_must_be_quoted_is_still_one(name):
    assert parsed(f"x=${{oc.env:HOME}}/{name}").value() == f"${{oc.env:HOME}}/{name}"


def test_each_choice_is_quoted_by_itself():
    found = parsed("init_from=runs/step=1.ckpt,runs/b.ckpt, /data/#c")
    assert found.is_sweep_override()
    assert [unquoted(str(v)) for v in found.sweep_string_iterator()] == [
        "runs/step=1.ckpt", "runs/b.ckpt", "/data/#c",
    ]  # fmt: skip


@given(st.text(max_size=12))
def test_quoting_is_undone_by_hydra_and_by_us(text):
    (found,) = PARSER.parse_overrides([f"x={quoted(text)}"])
    assert found.value() == text
    assert unquoted(quoted(text)) == text
    assert PARSER.parse_overrides([f"x={as_override([text])}"])[0].value() == [text]


LETTERS = "ab1._-/ \\#&()[]{}=~\"'é"


@example("/\\\\=x")  # Hydra reads two backslashes as one, and then a bare =
@given(st.text(st.sampled_from(LETTERS), min_size=1, max_size=12).map(lambda s: f"/{s}x"))
def test_any_path_without_a_comma_reaches_the_config_or_is_read_as_before(path):
    override = f"x={path}"
    if with_quoted_paths([override]) != [override]:
        assert parsed(override).value() == path
    else:
        PARSER.parse_overrides([override])
