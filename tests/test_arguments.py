"""Arguments of the library in each other's places: refused by name, with what belongs there."""

import pytest
import torch
from torch import nn

from qat import (
    Header,
    IntegerNetwork,
    QuantOptimizer,
    QuantSpec,
    audit,
    bcgd,
    convert,
    network_graph,
    onnx_model,
    prepare,
    save_packed,
    weight_projections,
)
from qat.errors import SpecError

SPEC = QuantSpec()
IMAGE = torch.zeros(2, 3)


@pytest.fixture(scope="module")
def net():
    return prepare(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), SPEC, example=IMAGE)


def optimizer(net, projections=None, rule=None):
    given = weight_projections(net, SPEC) if projections is None else projections
    return QuantOptimizer(torch.optim.SGD(net.parameters()), given, rule or bcgd())


GRAPH = "graph must be a list, got {}; give what network_graph(net, converted, example) answers"
WRONG = {
    "graph-of-spec": (
        lambda net: network_graph(net, SPEC, IMAGE),
        "converted must be a Converted, got a QuantSpec; give what convert(net, spec) answers",
    ),
    "integers-of-net": (IntegerNetwork, GRAPH.format("a Sequential")),
    "onnx-of-net": (onnx_model, GRAPH.format("a Sequential")),
    "packed-net": (
        lambda net: save_packed("x", net, Header(quant=SPEC)),
        "converted must be a Converted, got a Sequential; ",
    ),
    "packed-spec": (
        lambda net: save_packed("x", convert(net, SPEC), SPEC),
        "header must be a Header, got a QuantSpec; Header(quant=spec) is enough",
    ),
    "prepare-dict": (
        lambda net: prepare(net, {"weight": {"bits": 4}}),
        "spec must be a QuantSpec, got a dict; QuantSpec.from_dict reads one",
    ),
    "projections-name": (lambda net: weight_projections(net, "bcgd"), "spec must be a QuantSpec, "),
    "audit-class": (lambda net: audit(net, QuantSpec, IMAGE), "spec must be a QuantSpec, got Quan"),
    "convert-image": (lambda net: convert(net, IMAGE), "spec must be a QuantSpec, got a Tensor; "),
    "rule-function": (
        lambda net: optimizer(net, rule=bcgd),
        "rule must be an UpdateRule, got a function; give e.g. bcgd(), with its brackets",
    ),
    "projections-spec": (
        lambda net: optimizer(net, SPEC),
        "projections must be a Mapping, got a QuantSpec; give weight_projections(net, spec)",
    ),
    "base-parameters": (
        lambda net: QuantOptimizer(net.parameters(), {}, bcgd()),
        "base must be an Optimizer, got a generator; give a torch optimizer",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_belongs_there_is_named(net, name):
    call, message = WRONG[name]
    with pytest.raises(SpecError) as caught:
        call(net)
    assert str(caught.value).startswith(message)
