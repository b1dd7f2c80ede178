"""Options by name are those of the config group of that name."""

import pytest

from qat.compose import composed, conf_folder
from qat.errors import SpecError
from qat.spec.presets import named_quantization, quantization
from qat.spec.quant import QuantSpec
from support import ROOT

NAMES = sorted(path.stem for path in (ROOT / "conf" / "quant").glob("*.yaml"))


@pytest.mark.parametrize("name", NAMES)
def test_a_name_means_what_the_config_says(name):
    assert named_quantization(name) == composed(conf_folder(), [f"quant={name}"]).spec.quant


def test_widths_without_a_file_have_names_too():
    found = named_quantization("bcgd_w3a8")
    assert (found.weight.bits, found.activation.bits, found.rule.name) == (3, 8, "bcgd")
    assert named_quantization("lsq_w2a32").activation.bits == 32


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("bcgd", "bcgd_w1a4"),
        ("best_w1a4", "best_w1a4"),
        ("bcgd_w9a4", "quant.weight.bits"),
        ("biper_w4a4", "quant.weight.bits"),
        ("bcgd_w32a4", "float_only"),
        ("", "METHOD_wBITSaBITS"),
    ],
)
def test_a_wrong_name_is_answered_in_one_line(name, said):
    with pytest.raises(SpecError, match=said) as caught:
        named_quantization(name)
    assert "\n" not in str(caught.value)


def test_options_are_taken_in_three_forms():
    spec = QuantSpec()
    assert quantization(spec) is spec
    assert quantization("bcgd_w1a4") == spec
    assert quantization({"weight": {"bits": 2}}).weight.bits == 2
    with pytest.raises(SpecError, match="bcgd_w1a4"):
        quantization(3)
