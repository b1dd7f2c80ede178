"""Values of options in the text of --help."""

import re
from typing import get_args

import pytest

from qat.compose import conf_folder
from qat.compose.help import values
from qat.spec.quant import GRID_BITS
from qat.spec.sweep import Keep


def template():
    return (conf_folder() / "config.yaml").read_text(encoding="utf-8")


def test_values_are_those_of_the_spec_in_its_order():
    assert values("quant.weight.grid") == " | ".join(GRID_BITS)
    assert values("quant.ends.first") == "quantized | float"
    assert values("sweep.keep").split(" | ") == list(get_args(Keep))
    assert values("trainer.precision") == "32-true | bf16-mixed | 16-mixed"
    assert values("data.name").startswith("digits | ")  # of a table


def test_a_long_list_goes_on_below_its_beginning():
    lines = values("quant.activation.derivative", 36).split("\n")
    assert len(lines) > 1
    assert all(line.startswith(" " * 36) and not line.startswith(" " * 37) for line in lines[1:])
    assert max(len(line.strip()) for line in lines) <= 110 - 36


@pytest.mark.parametrize("key", ["seed", "quant.rule.rho"])
def test_an_option_without_a_set_of_values_is_not_asked_for(key):
    with pytest.raises(ValueError, match=key):
        values(key)


def test_every_list_of_the_help_stands_where_it_says():
    asked = re.findall(r"^ +(.*?)\$\{values:([\w.]+),(\d+)\}", template(), flags=re.MULTILINE)
    assert len(asked) >= 10
    assert {"trainer.accelerator", "trainer.precision"} <= {key for _, key, _ in asked}
    for before, key, column in asked:
        assert values(key, int(column))
        if key in before:  # the key itself, then its values
            assert len(before) + 2 == int(column)
