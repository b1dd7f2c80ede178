"""Update rules: the two numbers of each method at each step, and what is refused."""

import dataclasses

import pytest

from qat.errors import SpecError
from qat.optim.rule import (
    UpdateRule,
    bcgd,
    binary_connect,
    binary_relax,
    float_only,
    rule_from_numbers,
)


def numbers(rule, steps):
    return [(rule.blend(t), rule.relax(t)) for t in steps]


@pytest.mark.parametrize(
    ("rule", "pair"),
    [
        (float_only(), (0, 0)),
        (binary_connect(), (0, 1)),
        (bcgd(), (1e-5, 1)),
        (bcgd(0), (0, 1)),
        (bcgd(1), (1, 1)),
    ],
)
def test_constant_rules(rule, pair):
    assert numbers(rule, [0, 1, 10**6]) == [pair] * 3


def test_binary_relax_has_two_phases():
    rule = binary_relax(1.0, 2.0, hard_from=3)
    assert [rule.blend(t) for t in range(5)] == [0] * 5
    assert [rule.relax(t) for t in range(5)] == pytest.approx([1 / 2, 2 / 3, 4 / 5, 1, 1])
    assert numbers(binary_relax(hard_from=0), [0]) == [(0, 1)]


def test_default_growth_is_the_authors():
    lam = 1.02**40
    assert binary_relax(hard_from=100).relax(40) == pytest.approx(lam / (1 + lam))


def test_warm_start_comes_before_the_rule():
    rule = bcgd(0.3).after_warm_start(2)
    assert numbers(rule, range(4)) == [(0, 0), (0, 0), (0.3, 1), (0.3, 1)]
    relaxed = binary_relax(1.0, 2.0, hard_from=1).after_warm_start(2)
    assert numbers(relaxed, range(4)) == [(0, 0), (0, 0), (0, 0.5), (0, 1)]
    unchanged = bcgd(0.3)
    assert unchanged.after_warm_start(0) is unchanged


@pytest.mark.parametrize("steps", [4, 100, 4321])
def test_relaxation_from_numbers_fits_the_phase(steps):
    rule = rule_from_numbers("binary_relax", steps, initial=2.0, final=500.0, hard_from=0.75)
    hard = round(0.75 * steps)
    assert rule.relax(0) == pytest.approx(2 / 3)
    assert rule.relax(hard - 1) < 1
    assert rule.relax(hard) == 1
    last = rule.relax(hard - 1) / (1 - rule.relax(hard - 1))  # lambda of the last relaxed step
    assert last == pytest.approx(500 * (2 / 500) ** (1 / hard), rel=1e-6)


def test_relaxation_from_numbers_at_both_ends():
    assert rule_from_numbers("binary_relax", 100, hard_from=0.0).relax(0) == 1
    assert rule_from_numbers("binary_relax", 100, hard_from=1.0).relax(99) < 1
    assert rule_from_numbers("binary_relax", 100, initial=5, final=5).relax(40) == (
        pytest.approx(5 / 6)
    )


def test_other_rules_from_numbers():
    assert numbers(rule_from_numbers("bcgd", 9, rho=0.2), [5]) == [(0.2, 1)]
    assert numbers(rule_from_numbers("float_only", 9), [5]) == [(0, 0)]
    assert numbers(rule_from_numbers("binary_connect", 9), [5]) == [(0, 1)]


@pytest.mark.parametrize("rho", [-1e-9, 1.1, float("nan")])
def test_rho_out_of_range(rho):
    with pytest.raises(SpecError, match=f"got {rho}"):
        bcgd(rho)


@pytest.mark.parametrize(
    "options",
    [{"initial": 0.0}, {"initial": -1.0}, {"growth": 0.99}, {"initial": float("nan")}],
)
def test_relaxation_out_of_range(options):
    with pytest.raises(SpecError, match="binary_relax needs"):
        binary_relax(**options, hard_from=3)
    with pytest.raises(SpecError, match="hard_from=-1"):
        binary_relax(hard_from=-1)


def test_unknown_rule_names_the_known_ones():
    with pytest.raises(SpecError, match=r"binary_connect.*binary_relax.*bcgd.*got 'adam'"):
        rule_from_numbers("adam", 10)


def test_rules_are_values():
    rule = bcgd()
    with pytest.raises(dataclasses.FrozenInstanceError):
        rule.blend = rule.relax
    assert [f.name for f in dataclasses.fields(UpdateRule)] == ["blend", "relax"]
