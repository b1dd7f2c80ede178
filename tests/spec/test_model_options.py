"""Wrong model options are answered early, in one line that names the key."""

import subprocess
import sys

import pytest
from omegaconf import OmegaConf

from qat.errors import SpecError
from qat.spec.model import check_model
from support import ROOT

CONF = ROOT / "conf" / "model"


def load(name):
    return OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml"))


@pytest.mark.parametrize(
    ("config", "change", "message"),
    [
        ("resnet20", {"name": "resnet18"}, "model.name must be one of lenet5.*got 'resnet18'.*mod"),
        ("resnet20", {"norm_affine": "yes"}, "model.norm_affine must be true or false; got 'yes'"),
        ("resnet20", {"depth": 3}, "model.depth is not an option"),
        (
            "resnet18",
            {"stem": "tiny"},
            "model.stem must be one of auto.*got 'tiny'",
        ),
        ("resnet18", {"weights": True}, "model.weights must be one of default; got True; null"),
        ("timm", {"name": "a", "pretrained": 1}, "model.pretrained must be true or false; got 1"),
        ("timm", {"name": "a", "kwargs": [1]}, "model.kwargs must be a group of options"),
        (
            "timm",
            {"name": "a", "kwargs": {"in_chans": 3}},
            "model.kwargs.in_chans is set",
        ),
    ],
)
def test_wrong_options_are_named(config, change, message):
    with pytest.raises(SpecError, match=message):
        check_model(load(config) | change)


def test_a_foreign_target_is_left_alone():
    check_model({"_target_": "torch.nn.Linear", "in_features": -1})


def test_checks_load_nothing_heavy():
    code = (
        "import sys; import qat.spec.model as m;"
        "m.check_model({'_target_': 'qat.models.small.small_model', 'name': 'vgg11'});"
        "print([n for n in ('torch', 'torchvision', 'timm', 'lightning') if n in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
