"""The header's values: what is no header is refused with one line, whatever JSON it is."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qat.errors import CheckpointError, SpecError
from qat.spec.header import Header, Preprocessing, header_from
from support.damaged import parts, refusal, refused, resealed, sealed, small_file
from support.networks import prepared, tiny, weights

SPEC = weights(2)
DATA = small_file(SPEC, prepared(tiny, SPEC))
VALUES = json.loads(Header(quant=SPEC, example=(3, 8, 8)).to_json())
IMAGES = {"channels": 1, "size": 8, "mean": [0.5], "std": [0.1], "classes": ["a", "b"]}


def with_value(path, value):
    """VALUES with another value at a dotted path."""
    values = json.loads(json.dumps(VALUES))
    *groups, last = path.split(".")
    group = values
    for name in groups:
        group = group[name]
    group[last] = value
    return values


WRONG = [
    ("quant", None),
    ("quant", []),
    ("quant.weight", 3),
    ("quant.weight.bits", "2"),
    ("quant.weight.bits", 2.0),
    ("quant.weight.bits", 9),
    ("quant.weight.bits", True),
    ("quant.weight.bits", 10**400),
    ("quant.weight.mu", 10**400),
    ("quant.weight.mu", float("nan")),
    ("quant.rule.rho", float("inf")),
    ("quant.rule.name", ["bcgd"]),
    ("quant.overrides", "all"),
    ("quant.overrides", [1]),
    ("quant.overrides", [{"match": "0", "weight": {"bits": 11}}]),
    ("quant.a\nb", 1),
    ("architecture", "resnet20"),
    ("architecture", {"family": "mine", "options": {}}),
    ("architecture", {"family": "small", "options": []}),
    ("architecture", {"family": "small"}),
    ("architecture", {"family": "small", "options": {}, "code": "import os"}),
    ("preprocessing", IMAGES | {"mean": [float("nan")]}),
    ("preprocessing", IMAGES | {"std": [0.0]}),
    ("preprocessing", IMAGES | {"std": [0.1, 0.1]}),
    ("preprocessing", IMAGES | {"channels": 0}),
    ("preprocessing", IMAGES | {"crop": "left"}),
    ("preprocessing", IMAGES | {"color": "RGB"}),
    ("preprocessing", IMAGES | {"color": "BGR"}),
    ("preprocessing", IMAGES | {"antialias": False}),
    ("preprocessing", IMAGES | {"interpolation": "nearest"}),
    ("preprocessing", IMAGES | {"resize_shorter": 9}),
    ("preprocessing", IMAGES | {"crop": "centre", "resize_shorter": 7}),
    ("preprocessing", IMAGES | {"crop": "centre", "resize_shorter": 10**9}),
    ("preprocessing", IMAGES | {"classes": [1, 2]}),
    ("preprocessing", IMAGES | {"classes": "ab"}),
    ("accuracy", 0.9),
    ("versions", []),
    ("data", None),
    ("source_sha256", 0),
    ("trits", 1),
    ("promised_bytes", -1),
    ("promised_bytes", 1.5),
    ("promised_bytes", float("inf")),
    ("promised_bytes", [[[]]]),
    ("example", 3),
    ("example", [3, 0, 8]),
    ("example", [3, 8.0]),
    ("example", [1] * 9),
    ("example", [2**20, 2**20]),
    ("example", [10**400]),
    ("more", 1),
    ("a\nb", 1),
]


def short(value):
    return repr(value)[:40]


@pytest.mark.parametrize(("path", "value"), WRONG, ids=short)
def test_a_wrong_value_is_refused_with_its_name(path, value):
    message = refusal(header_from, with_value(path, value))
    assert message.startswith("the header is not what this qat writes: ")
    assert path.split(".")[-1].splitlines()[0] in message


@pytest.mark.parametrize(("path", "value"), WRONG, ids=short)
def test_a_file_with_a_wrong_value_is_refused_with_its_name(path, value):
    _, entries, body = parts(DATA)
    text = {"format": 1, "sha256": ""} | with_value(path, value)
    assert "the header is not what this qat writes" in refused(sealed(text, entries, body))


def test_only_the_options_are_needed():
    assert header_from({"quant": VALUES["quant"]}) == Header(quant=SPEC)
    assert "header.quant must be given" in refusal(header_from, {})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


@given(st.sampled_from([*VALUES, "more"]), JSON)
def test_any_json_is_a_header_or_refused_with_one_line(name, value):
    values = VALUES | {name: value}
    try:
        header = header_from(values)
    except CheckpointError:
        refusal(header_from, values)
    else:
        assert header_from(json.loads(header.to_json())) == header


@given(JSON)
def test_any_json_is_no_header_without_its_options(value):
    refusal(header_from, value)


def test_nested_values_are_refused_at_any_depth():
    for depth in (10, 900, 100_000):
        _, entries, body = parts(DATA)
        marked = {"format": 1, "sha256": ""} | VALUES | {"promised_bytes": "HERE"}
        data = sealed(marked, entries, body)
        nested = data[8:].replace(b'\\"HERE\\"', b"[" * depth + b"]" * depth)
        length = int.from_bytes(data[:8], "little") + 2 * depth - 8
        refused(resealed(length.to_bytes(8, "little") + nested))


def test_a_value_too_deep_to_be_shown_is_refused():
    deep = []
    for _ in range(5000):
        deep = [deep]
    assert "recursion" in refusal(header_from, VALUES | {"promised_bytes": deep})


def test_a_header_that_is_built_wrong_says_so():
    with pytest.raises(SpecError, match=r"header\.promised_bytes"):
        Header(quant=SPEC, promised_bytes=-1)
    with pytest.raises(SpecError, match=r"preprocessing\.mean must have one number per channel"):
        Preprocessing(channels=3, size=8, mean=(0.5,), std=(1.0, 1.0, 1.0), classes=("a",))


def test_a_shape_is_in_the_file_where_it_is_told():
    assert "example" not in json.loads(Header(quant=SPEC).to_json())
    assert header_from(VALUES).shape == (3, 8, 8)
    assert header_from({**VALUES, "preprocessing": IMAGES}).shape == (1, 8, 8)


def test_older_preprocessing_means_what_it_did():
    told = {"size": 224, "mean": [0.5] * 3, "std": [0.1] * 3, "classes": ["a"], "channels": 3}
    old = header_from(VALUES | {"preprocessing": told | {"crop": "centre"}}).preprocessing
    assert (old.resize_shorter, old.color, old.interpolation) == (256, "RGB", "bilinear")
    whole = header_from(VALUES | {"preprocessing": told | {"crop": "whole"}}).preprocessing
    assert (whole.resize_shorter, whole.antialias) == (0, True)
