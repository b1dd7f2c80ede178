"""Outlook: what is said of an untrained network is what the export says of the trained one."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from qat.commands.formats import FORMATS as OFFERED
from qat.errors import SpecError
from qat.export.integer.trace import network_graph
from qat.export.onnx.model import onnx_model
from qat.export.onnx.qonnx import qonnx_model
from qat.export.outlook import FORMATS, export_outlook
from qat.export.packed.convert import convert
from qat.models.small import LeNet5
from qat.models.timm_model import timm_model
from qat.quantize.plan import project_weights, resolve
from qat.quantize.prepare import prepare
from qat.spec.quant import ActivationSpec, QuantSpec, WeightSpec
from support.networks import IN_GRAPH, Tied

W1A4 = QuantSpec()
IMAGES = torch.linspace(-1, 1, 2 * 3 * 32 * 32).view(2, 3, 32, 32)


class Gelu(nn.Module):
    """One that calls what no export knows as a function."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)

    def forward(self, x):
        return self.fc(F.gelu(self.conv(x)).mean(dim=(2, 3)))


class Fickle(Gelu):
    """Its forward does what no export, and nobody else, expects."""

    def forward(self, x):
        raise KeyError("a line\nand another")


class Single(Gelu):
    """One that cannot even be copied."""

    def __deepcopy__(self, memo):
        raise TypeError("there is\none of it")


def hardswish():
    return timm_model("mobilenetv3_small_050", num_classes=5, in_channels=3, image_size=32)


def lenet5():
    return LeNet5(num_classes=5, in_channels=3, image_size=32)


def in_graph(method, activation="staircase", bits=4):
    return QuantSpec(
        rule=IN_GRAPH,
        weight=WeightSpec(bits=bits, method=method),
        activation=ActivationSpec(bits=4, kind=activation),
    )


def refused(net, plan):
    """For each format whether the export refuses a network of hard weights, and its words."""
    project_weights(net, plan)

    def graph():
        return network_graph(net, convert(net, plan), IMAGES)

    doors = {
        "packed": lambda: convert(net, plan),
        "onnx": lambda: onnx_model(graph()),
        "qonnx": lambda: qonnx_model(graph()),
    }
    found = {}
    for name, door in doors.items():
        try:
            door()
        except SpecError as error:
            found[name] = str(error)
    return found


@pytest.mark.parametrize(
    ("build", "spec", "able"),
    [
        (lenet5, W1A4, 3),
        (lenet5, in_graph("lsq", "lsq"), 3),
        (lenet5, in_graph("dorefa", "dorefa", bits=2), 2),
        (lenet5, QuantSpec(weight=WeightSpec(bits=4, grid="power_of_two")), 2),
        (hardswish, W1A4, 1),
        (Gelu, W1A4, 1),
        (Tied, in_graph("lsq"), 0),
    ],
    ids=["lenet5", "lsq", "dorefa", "power_of_two", "hardswish", "gelu", "tied"],
)
def test_what_is_said_is_what_the_export_does(build, spec, able):
    net = build()
    plan = resolve(net, spec)
    prepare(net, plan, example=IMAGES)
    told = str(export_outlook(net, plan, IMAGES))
    found = refused(net, plan)
    assert list(FORMATS[able:]) == list(found), told
    kept = f"{', '.join(FORMATS[:able])} yes" if able else ""
    general = "onnx in the general form, if PyTorch can export it" if able == 1 else ""
    reasons = {reason.partition(";")[0] for reason in found.values()}
    without = FORMATS[2:] if general else FORMATS[able:]
    lost = [f"{', '.join(without)} no: {reason}" for reason in reasons]
    assert told == "; ".join(filter(None, [kept, general, *lost]))


def test_the_first_thing_in_the_way_is_named():
    told = (
        "packed yes; onnx in the general form, if PyTorch can export it; "
        "qonnx no: the layer bn1.act (Hardswish) cannot be exported in this form"
    )
    net = hardswish()
    plan = resolve(net, W1A4)
    prepare(net, plan, example=IMAGES)
    assert str(export_outlook(net, plan, IMAGES)) == told


def test_the_network_and_the_random_numbers_are_left_as_they_are():
    net = hardswish().train()
    plan = resolve(net, W1A4)
    prepare(net, plan, example=IMAGES)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    state = torch.get_rng_state()
    export_outlook(net, plan, IMAGES)
    assert net.training
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_a_network_that_cannot_be_asked_fails_nothing():
    net = Gelu()
    plan = resolve(net, W1A4)
    prepare(net, plan, example=IMAGES)
    net.__class__ = Fickle
    told = str(export_outlook(net, plan, IMAGES))
    assert "Fickle cannot be followed" in told
    assert "\n" not in told
    net.__class__ = Single
    assert str(export_outlook(net, plan, IMAGES)) == "not known: there is one of it"


class Drawn(Gelu):
    """It draws random numbers in evaluation, which a file of ours does not."""

    def forward(self, x):
        x = super().forward(x)
        return x + torch.rand_like(x)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (
            lenet5,
            ["packed    packed.safetensors", "onnx      faithful.onnx, fast.onnx",
             "qonnx     qonnx.onnx", "integers  qat.IntegerNetwork, engine=integer"],
        ),
        (
            Gelu,
            ["packed    packed.safetensors", "onnx      general.onnx; no faithful.onnx or "
             "fast.onnx: the function gelu cannot be exported in this form",
             "qonnx     no: the function gelu cannot be exported in this form; ",
             "integers  qat.IntegerNetwork, engine=integer"],
        ),
        (
            Drawn,
            ["packed    packed.safetensors", "onnx      no: the network needs the ONNX operator "
             "RandomUniformLike, which files of ours do not hold; ship the packed file; no "
             "faithful.onnx or fast.onnx: the function rand_like",
             "qonnx     no: the function rand_like", "integers  no: the function rand_like"],
        ),
    ],
    ids=["lenet5", "gelu", "drawn"],
)  # fmt: skip
def test_each_form_has_a_line_with_its_reason_and_what_to_do(build, words):
    net = build()
    plan = resolve(net, W1A4)
    prepare(net, plan, example=IMAGES)
    lines = export_outlook(net, plan, IMAGES, is_tried=True).lines()
    assert len(lines) == len(words)
    for line, start in zip(lines, words, strict=True):
        assert line.startswith(start)


def test_the_formats_are_those_of_the_command():
    assert set(FORMATS) <= set(OFFERED)
