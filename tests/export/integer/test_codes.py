"""Where codes jump: on integer sums exactly, and for every kind of activation as its module."""

import pytest
import torch

from qat.errors import SpecError
from qat.export.integer.network import as_codes, quantized
from qat.export.integer.numbers import Combination, Term
from qat.nn.activation import ActivationQuantizer, QuantizedActivation
from qat.nn.activation_codes import CodeRule, code_rule
from qat.nn.learned_clip import LsqActivation, PactActivation
from qat.nn.sign_activation import SignActivation

NONE = torch.zeros((), dtype=torch.float64)


def steps_of(rule, numerators):
    """A sum in halves of the rule's step, as a layer of integers gives it."""
    integers = torch.tensor(numerators, dtype=torch.int32).view(1, -1)
    term = Term(integers, torch.tensor(rule.step / 2, dtype=torch.float64), 1000)
    return Combination((term,), NONE)


@pytest.mark.parametrize("step", [0.5, 0.1, 1 / 3, 1.7])
def test_on_a_jump_the_code_is_the_ceiling(step):
    """At k steps exactly the code is k; half-even rounding of k + 1/2 takes k + 1 for odd k."""
    rule = CodeRule(float(torch.tensor(step)), 0, 15, NONE)
    found = quantized(rule, steps_of(rule, range(-4, 34)))
    expected = [min(max(-(-n // 2), 0), 15) for n in range(-4, 34)]
    assert found.terms[0].integers.flatten().tolist() == expected


@pytest.mark.parametrize("step", [0.5, 0.1, 1 / 3])
def test_on_a_jump_of_the_nearest_halves_go_down(step):
    rule = CodeRule(float(torch.tensor(step)), -7, 7, NONE + 0.5)
    found = quantized(rule, steps_of(rule, range(-18, 19)))
    expected = [min(max(-((1 - n) // 2), -7), 7) for n in range(-18, 19)]
    assert found.terms[0].integers.flatten().tolist() == expected


def test_a_sign_is_one_from_its_shift_on():
    rule = CodeRule(1.0, -1, 1, torch.tensor([0.0, 0.5, -0.5]).double(), is_sign=True)
    for value, expected in [(0, [1, -1, 1]), (1, [1, 1, 1]), (-1, [-1, -1, 1]), (-2, [-1, -1, -1])]:
        halves = torch.full((1, 3), value, dtype=torch.int32)
        term = Term(halves, torch.tensor(0.5).double(), 2)
        assert quantized(rule, Combination((term,), NONE)).terms[0].integers.tolist() == [expected]
        assert quantized(rule, halves.double() / 2).terms[0].integers.tolist() == [expected]


@pytest.mark.parametrize(
    "module",
    [
        ActivationQuantizer(3),
        ActivationQuantizer(4, signed=True),
        LsqActivation(4),
        LsqActivation(4, signed=True),
        PactActivation(3),
        PactActivation(4, signed=True),
        SignActivation(channels=2),
    ],
    ids=lambda m: f"{type(m).__name__}{'-signed' * m.signed}",
)
def test_the_rule_of_each_kind_is_what_the_module_does(module):
    with torch.no_grad():
        if getattr(module, "shift", None) is not None:
            module.shift.copy_(torch.tensor([0.3, -0.7]))
    x = torch.linspace(-12, 12, 4001).view(-1, 1).repeat(1, 2)
    rule = code_rule(module.eval(), "act")
    codes = quantized(rule, x.double()).terms[0].integers
    expected = as_codes(module(x), rule).terms[0].integers
    assert int((codes != expected).sum()) <= 2  # x / step in float32 against float64
    assert (int(codes.min()), int(codes.max())) == (rule.low, rule.high)


def test_an_unknown_activation_is_named():
    with pytest.raises(SpecError, match=r"the activation layer1.relu \(QuantizedActivation\)"):
        code_rule(QuantizedActivation(2), "layer1.relu")
