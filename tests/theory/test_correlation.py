"""Experiment b: verdicts follow from the numbers, and can fail."""

import math

import pytest
import torch

from qat.functional.ste import DERIVATIVES
from qat.theory import correlation
from qat.theory.general_estimator import family_slope

THETA = torch.linspace(0, math.pi, 31, dtype=torch.float64)[1:-1]


def examine(slope):
    return correlation.examine(slope, THETA, seed=0)


@pytest.fixture(scope="module")
def found():
    return {name: examine(slope) for name, slope in correlation.family().items()}


def test_every_member_is_there(found):
    assert {name.partition(" ")[0] for name in found} == set(DERIVATIVES)


def test_claims(found):
    assert [c.verdict for c in correlation.claims(found)] == ["held"] * 5


def test_the_cosine_of_relu_and_identity_is_that_of_half_the_angle(found):
    """E g is along w_hat - w*, df/dw across w_hat: the angle between them is theta / 2."""
    for name in ("identity", "relu"):
        for cosine in found[name].cosine.values():
            torch.testing.assert_close(cosine, torch.cos(THETA / 2), rtol=0, atol=1e-10)


def test_the_inner_product_of_relu(found):
    expected = torch.sin(THETA) / (2 * (2 * math.pi) ** 1.5)
    torch.testing.assert_close(found["relu"].inner, expected, rtol=1e-10, atol=0)


def test_a_slope_against_the_gradient_is_noticed(found):
    bad = {**found, "dsq": examine(lambda x: -family_slope("dsq")(x))}
    verdicts = [c.verdict for c in correlation.claims(bad)]
    assert verdicts == ["held", "held", "not held", "held", "held"]


def test_a_slope_that_is_negative_near_zero_only_is_noticed():
    """The sign must be looked at over all angles and sizes, not at one."""
    one = examine(lambda x: torch.where(x.abs() < 0.05, -3.0, 1.0).to(x.dtype))
    claim = correlation.sign_claim({"one": one}, ("one",), "")
    assert claim.verdict == "not held"
    assert one.inner.max() > 0


def test_a_wrong_formula_at_the_spurious_minimum_is_noticed(found):
    import dataclasses

    wrong = dataclasses.replace(found["identity"], predicted=found["identity"].predicted * 1.001)
    verdicts = [c.verdict for c in correlation.claims({**found, "identity": wrong})]
    assert verdicts[-1] == "not held"
