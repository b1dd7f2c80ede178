"""Random draws: in their ranges, from their seed, whatever their number."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qat.errors import SpecError
from qat.spec.sweep import SweepSpec
from qat.sweep.draw import as_text, drawn, listed

RANGES = {
    "optimizer.lr": {"low": 1e-3, "high": 0.1, "log": True},
    "training.label_smoothing": {"low": 0.0, "high": 0.3},
    "quant.activation.bits": {"low": 2, "high": 8},
    "data.batch_size": {"low": 16, "high": 64, "step": 16},
    "quant": ["bcgd_w1a4", "binary_relax_w1a32"],
}


def spec(**options):
    return SweepSpec(method="random", parameters=RANGES, **options)


def values(draws, key):
    return [o.partition("=")[2] for draw in draws for o in draw if o.startswith(f"{key}=")]


@given(st.integers(0, 2**31))
def test_draws_lie_in_their_ranges(seed):
    draws = drawn(spec(trials=5, seed=seed))
    assert all(1e-3 <= float(v) <= 0.1 for v in values(draws, "optimizer.lr"))
    assert all(0 <= float(v) <= 0.3 for v in values(draws, "training.label_smoothing"))
    assert all(int(v) in range(2, 9) for v in values(draws, "quant.activation.bits"))
    assert {int(v) for v in values(draws, "data.batch_size")} <= {16, 32, 48, 64}
    assert set(values(draws, "quant")) <= set(RANGES["quant"])


def test_more_trials_keep_the_earlier_ones_and_another_seed_moves_all():
    few, many = drawn(spec(trials=5)), drawn(spec(trials=50))
    assert many[:5] == few
    other = drawn(spec(trials=5, seed=2))
    assert all(a[0] != b[0] for a, b in zip(few, other, strict=True))


def test_a_logarithmic_range_is_uniform_in_the_logarithm():
    rates = [math.log10(float(v)) for v in values(drawn(spec(trials=2000)), "optimizer.lr")]
    assert sum(rates) / len(rates) == pytest.approx(-2, abs=0.05)
    assert sum(rate < -2.5 for rate in rates) / len(rates) == pytest.approx(0.25, abs=0.05)


def test_every_choice_and_both_ends_are_drawn():
    draws = drawn(spec(trials=300))
    assert set(values(draws, "quant.activation.bits")) == {str(b) for b in range(2, 9)}
    assert set(values(draws, "data.batch_size")) == {"16", "32", "48", "64"}


def test_lists_become_choices():
    assert listed({"a.b": [1, 2], "c": ["x", "y z"], "d": [[1, 2], None, True]}) == [
        "a.b=1,2",
        'c=x,"y z"',
        "d=[1,2],null,true",
    ]
    assert as_text("runs/a.b-c") == "runs/a.b-c"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "../up"}, ["sweep.name", "../up"]),
        ({"parameters": {"a": []}}, ["sweep.parameters.a", "[]"]),
        ({"parameters": {"a": 3}}, ["sweep.parameters.a", "3"]),
        ({"parameters": {"a": {"low": 1}}}, ["sweep.parameters.a", "low"]),
        ({"parameters": {"a": {"low": 2, "high": 1}}, "method": "random"}, ["low < high"]),
        ({"parameters": {"a": {"low": 0, "high": 1, "log": True}}, "method": "tpe"}, ["low > 0"]),
        ({"parameters": {"a": {"low": 0, "high": 1}}}, ["range", "sweep.method=grid"]),
        ({"trials": 0}, ["sweep.trials", ">= 1"]),
        ({"threads": 0}, ["sweep.threads", ">= 1"]),
    ],
)
def test_wrong_options_name_the_key(options, words):
    with pytest.raises(SpecError) as error:
        SweepSpec(**options)
    assert all(word in str(error.value) for word in words), error.value
