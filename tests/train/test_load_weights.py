"""load_weights: float and quantized weights into a prepared network, all or nothing."""

import copy

import pytest
import torch
from torch import nn

from qat.errors import CheckpointError
from qat.quantize.loading import load_weights
from qat.quantize.prepare import prepare
from qat.spec.quant import QuantSpec, RuleSpec, WeightSpec
from qat.train.weights import network_state, restore

pytestmark = pytest.mark.filterwarnings("ignore:prepare.. ")


def convnet():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
    )  # fmt: skip


def test_float_weights_load_into_a_prepared_network():
    source, net = convnet(), prepare(convnet(), QuantSpec())
    with torch.no_grad():
        source[0].weight.fill_(0.25)
        net[2].step.fill_(0.7)
    assert load_weights(net, source.state_dict()) == ["2.step", "4.step"]
    assert torch.equal(net[0].weight, source[0].weight)
    assert net[2].step.item() == pytest.approx(0.7)


def test_quantized_weights_load_with_their_steps():
    net = prepare(convnet(), QuantSpec())
    state = {k: v + 1 for k, v in net.state_dict().items()}
    assert load_weights(net, state) == []
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())


def test_some_steps_missing_is_an_error():
    net = prepare(convnet(), QuantSpec())
    state = {k: v for k, v in net.state_dict().items() if k != "4.step"}
    with pytest.raises(CheckpointError, match=r"1 of 2 .*4\.step"):
        load_weights(net, state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("0.weight"), "missing 0.weight"),
        (lambda s: s.update(extra=torch.ones(1)), "unexpected extra"),
        (lambda s: s.update({"7.bias": torch.ones(4)}), r"7.bias has shape \(4,\).*\(3,\)"),
        (lambda s: s.update({"2.step": torch.ones(1)}), "2.step has shape"),
    ],
)
def test_other_weights_are_refused_and_leave_no_trace(change, message):
    net = prepare(convnet(), QuantSpec())
    before = {k: v.clone() for k, v in net.state_dict().items()}
    state = {k: v + 1 for k, v in before.items()}
    change(state)
    with pytest.raises(CheckpointError, match=message):
        load_weights(net, state)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def other():
    """Another network, for what does not fit."""
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4, 3))


def averaged(net):
    return torch.optim.swa_utils.AveragedModel(net)


WRAPPED = {
    "plain": lambda net: net.state_dict(),
    "DataParallel": lambda net: nn.DataParallel(net).state_dict(),
    "compiled": lambda net: torch.compile(net).state_dict(),
    "compiled-parallel": lambda net: nn.DataParallel(torch.compile(net)).state_dict(),
    "averaged": lambda net: averaged(net).state_dict(),
    "lightning": lambda net: nn.ModuleDict({"model": net, "loss": nn.Linear(1, 1)}).state_dict(),
    "lightning-compiled": lambda net: nn.ModuleDict({"model": torch.compile(net)}).state_dict(),
    "ours-without-optimizer": lambda net: nn.ModuleDict(
        {"net": net, "feature_loss": nn.Linear(1, 1)}
    ).state_dict(),
}
FILES = {
    "file": lambda state: state,
    "state_dict": lambda state: {"state_dict": state, "epoch": 3},
    "model": lambda state: {"model": state, "optimizer": {"state": {}}, "args": None},
    "model_state_dict": lambda state: {"model_state_dict": state, "loss": 0.1},
}
NETS = {
    "update": (convnet, QuantSpec()),
    "in-graph": (
        lambda: nn.Sequential(*list(convnet().children())[:2]),
        QuantSpec(rule=RuleSpec(name="float_only"), weight=WeightSpec(method="lsq", bits=4)),
    ),
    "own-names": (lambda: nn.ModuleDict({"model": convnet(), "net": other()}), QuantSpec()),
}


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("wrapper", WRAPPED)
@pytest.mark.parametrize("name", NETS)
def test_weights_of_wrapped_networks_load(name, wrapper, kind):
    make, spec = NETS[name]
    source = make()
    for value in source.parameters():
        nn.init.normal_(value)
    content = FILES[kind](WRAPPED[wrapper](source))
    for wrapped in (False, True):  # a quantized network may have been wrapped, too
        net = prepare(make(), spec)
        if wrapped:
            moved = prepare(copy.deepcopy(source), spec)
            content = FILES[kind](WRAPPED[wrapper](moved))
        restore(net, spec, content, weights="latent")
        found = net.state_dict()
        for key, value in source.state_dict().items():
            latent = key.replace("weight", "parametrizations.weight.original")
            assert torch.equal(found.get(key, found.get(latent)), value), key


@pytest.mark.parametrize("wrapper", WRAPPED)
def test_what_does_not_fit_is_shown_beside_what_is_wanted(wrapper):
    net = prepare(convnet(), QuantSpec(), example=torch.zeros(2, 1, 8, 8))
    with pytest.raises(CheckpointError, match=r"missing 1\.bias; unexpected 2\.bias; missing 1"):
        load_weights(net, WRAPPED[wrapper](other()))
    with pytest.raises(CheckpointError, match=r"missing 0\.bias; unexpected base\.0\.bias"):
        load_weights(net, {f"base.{key}": value for key, value in convnet().state_dict().items()})


@pytest.mark.parametrize(
    "content", [{}, {"state_dict": {}}, {"state_dict": 3}, {"model": {"a": 1}}, {"epoch": 3}]
)
def test_a_file_without_a_state_dict(content):
    with pytest.raises(CheckpointError, match="neither a checkpoint of a run nor a plain state"):
        network_state(content)
