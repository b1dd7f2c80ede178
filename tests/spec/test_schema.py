"""Plain values to typed groups: every refusal names the key, the value and what is allowed."""

import contextlib
import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qat.errors import SpecError
from qat.spec.keys import join
from qat.spec.schema import check, option, read


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    size: int = option(3, low=1, high=9, hint="try 4")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    rate: float = option(above=0, below=1)
    name: Literal["a", "b", 8] = "a"
    count: int | None = option(None, low=2)
    flag: bool = False
    text: str = "x"
    inner: Inner = dataclasses.field(default_factory=Inner)
    items: tuple[float, ...] = option((), low=0)
    groups: tuple[Inner, ...] = ()
    free: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        check(self, "top")


def test_values_arrive_with_their_types():
    group = read(
        Group,
        {
            "rate": 0.5,
            "name": "b",
            "count": 7,
            "flag": True,
            "inner": {"size": 9},
            "items": [1, 2.5],
            "groups": [{"size": 1}, {}],
            "free": {"any": [1, None]},
        },
        "top",
    )
    assert group.inner == Inner(size=9)
    assert group.items == (1.0, 2.5)
    assert [type(x) for x in group.items] == [float, float]
    assert group.groups == (Inner(size=1), Inner(size=3))
    assert group.free == {"any": [1, None]}
    assert group.text == "x"
    assert read(Group, {"rate": 0.5}, "top").count is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "top.rate must be given"),
        ({"rate": 0.5, "nam": "a"}, "top.nam is not an option; did you mean top.name?"),
        ({"rate": 0.5, "zzz": 1}, "top.zzz is not an option (options: rate, name, count, "),
        ({"rate": 0.5, "name": "c"}, "top.name must be one of a, b, 8; got 'c'"),
        ({"rate": 0}, "top.rate must be a number > 0 and < 1; got 0"),
        ({"rate": 1.0}, "top.rate must be a number > 0 and < 1; got 1.0"),
        ({"rate": "0.5"}, "top.rate must be a number > 0 and < 1; got '0.5'"),
        ({"rate": None}, "top.rate must be a number > 0 and < 1; got None"),
        ({"rate": True}, "top.rate must be a number > 0 and < 1; got True"),
        ({"rate": math.nan}, "top.rate must be a number > 0 and < 1; got nan"),
        ({"rate": 0.5, "count": 1}, "top.count must be an integer >= 2; got 1"),
        ({"rate": 0.5, "count": 2.0}, "top.count must be an integer >= 2; got 2.0"),
        ({"rate": 0.5, "flag": 1}, "top.flag must be true or false; got 1"),
        ({"rate": 0.5, "text": 3}, "top.text must be a text; got 3"),
        ({"rate": 0.5, "inner": 3}, "top.inner must be a group of options, got 3"),
        ({"rate": 0.5, "inner": {"size": 10}}, "top.inner.size must be an integer >= 1 and <= 9; "
         "got 10; try 4"),
        ({"rate": 0.5, "items": 3}, "top.items must be a list, got 3"),
        ({"rate": 0.5, "items": "ab"}, "top.items must be a list, got 'ab'"),
        ({"rate": 0.5, "items": [1, -1]}, "top.items[1] must be a number >= 0; got -1"),
        ({"rate": 0.5, "groups": [{}, {"size": 0}]}, "top.groups[1].size must be an integer >= 1"),
        ({"rate": 0.5, "free": 3}, "top.free must be a group of options, got 3"),
    ],
)  # fmt: skip
def test_refusals(values, message):
    with pytest.raises(SpecError) as caught:
        read(Group, values, "top")
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("values", [None, 3, "text", [1]])
def test_only_mappings_are_groups(values):
    with pytest.raises(SpecError, match="top must be a group of options"):
        read(Group, values, "top")


def test_direct_construction_is_checked_too():
    with pytest.raises(SpecError, match=r"top\.rate must be a number > 0 and < 1; got 2"):
        Group(rate=2)
    with pytest.raises(SpecError, match=r"top\.name must be one of"):
        Group(rate=0.5, name="z")


@pytest.mark.parametrize(
    "wrong", [{"items": (1.0, -1.0)}, {"items": ("a",)}, {"inner": 3}, {"free": 3}]
)
def test_direct_construction_checks_lists_and_groups_too(wrong):
    with pytest.raises(SpecError):
        Group(rate=0.5, **wrong)


@settings(deadline=None)
@given(st.floats() | st.floats(0, 1))
def test_open_and_closed_ends(number):
    inside = 0 < number < 1
    if inside:
        assert read(Group, {"rate": number}, "").rate == number
    else:
        with pytest.raises(SpecError, match=r"^rate must be"):
            read(Group, {"rate": number}, "")


@settings(deadline=None)
@given(st.dictionaries(st.text(max_size=5), st.integers() | st.text() | st.none(), max_size=3))
def test_nothing_but_spec_errors(values):
    known = {f.name for f in dataclasses.fields(Group)}
    if values.keys() <= known:
        with contextlib.suppress(SpecError):
            read(Group, {"rate": 0.5, **values}, "top")
    else:
        with pytest.raises(SpecError, match=r"top\."):
            read(Group, {"rate": 0.5, **values}, "top")


def test_join():
    assert join("", "a") == "a"
    assert join("a.b", "c") == "a.b.c"


@pytest.mark.parametrize("value", [True, False, "on", "off", "auto"])
def test_on_and_off_are_words_as_yaml_reads_them_too(value):
    from qat.commands.evaluate import EvaluateSpec
    from qat.commands.options import read_arguments
    from qat.spec.run import RuntimeSpec

    word = {True: "on", False: "off"}.get(value, value)
    assert read(RuntimeSpec, {"integer_forward": value}, "runtime").integer_forward == word
    given = read_arguments(EvaluateSpec, ["model=runs/a", f"integer_forward={word}"], example="")
    assert given.integer_forward == word
