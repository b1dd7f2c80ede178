"""What a run prints of its rule says what that rule did."""

import pytest

from qat.train.summary import rule_line

RULE = {"method": "update", "numbers": {}, "quantized_steps": 60, "relaxed_steps": 0, "pull": 0.0}


@pytest.mark.parametrize(
    ("rule", "line"),
    [
        ({"name": "float_only"}, "rule float_only: no weight is projected"),
        ({"name": "binary_connect"}, "rule binary_connect(): 60 quantized steps"),
        (
            {"name": "bcgd", "numbers": {"rho": 1e-5}, "pull": 6e-4},
            "rule bcgd(rho=1e-05): 60 quantized steps; blending alone pulled latent weights 0.06 % "
            "of the way to the grid, the gradient steps at hard weights did the rest",
        ),
        (
            {"name": "binary_relax", "numbers": {"final": 50.0}, "relaxed_steps": 45},
            "rule binary_relax(final=50): 60 quantized steps, relaxed for 45 of them, then hard",
        ),
        (
            {"name": "float_only", "method": "lsq"},
            "weights by lsq, in the graph: 60 quantized steps",
        ),
    ],
)
def test_the_line_of_a_rule(rule, line):
    assert rule_line(RULE | rule) == line
