"""Small prepared networks with random batch norms, as codes and as graphs; no training."""

import torch
from torch import nn

from qat.export.integer.graph import Layer, Quantize
from qat.export.integer.network import as_codes
from qat.export.integer.trace import network_graph
from qat.export.packed.convert import convert, put
from qat.models.small import CifarResNet
from qat.quantize.activations import activation_quantizers
from qat.quantize.prepare import prepare
from qat.spec.quant import ActivationSpec, EndsSpec, QuantSpec, RuleSpec, WeightSpec


def resnet8():
    return CifarResNet(8, num_classes=5)


def images(count=4, *, channels=3, size=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, channels, size, size, generator=generator)


def in_graph(method, **options):
    """Weights quantized inside the graph, which no update rule moves."""
    return {"rule": RuleSpec(name="float_only"), "weight": WeightSpec(method=method, **options)}


SIGN = {"kind": "sign", "bits": 1}
SPECS = {
    "w1a4": QuantSpec(),
    "w2a4": QuantSpec(weight=WeightSpec(bits=2)),
    "w4a4-channel": QuantSpec(weight=WeightSpec(bits=4, granularity="channel")),
    "w8a8": QuantSpec(weight=WeightSpec(bits=8), activation=ActivationSpec(bits=8)),
    "w1a1": QuantSpec(activation=ActivationSpec(**SIGN)),
    "w1a1-shift": QuantSpec(activation=ActivationSpec(**SIGN, shift="channel")),
    "lsq": QuantSpec(**in_graph("lsq", bits=4), activation=ActivationSpec(kind="lsq")),
    "pact": QuantSpec(**in_graph("dorefa", bits=4), activation=ActivationSpec(kind="pact")),
    "dorefa": QuantSpec(**in_graph("dorefa", bits=1), activation=ActivationSpec(kind="dorefa")),
    "power-of-two": QuantSpec(weight=WeightSpec(bits=4, grid="power_of_two")),
    "input-bits": QuantSpec(input_bits=8),
    "ends-float": QuantSpec(ends=EndsSpec(first="float", last="float")),
    "w1a32": QuantSpec(activation=ActivationSpec(bits=32)),
}


@torch.no_grad()
def randomised(net, example, seed=0):
    """Batch norms that fit the network's values, with gammas of both signs and one of zero."""
    generator = torch.Generator().manual_seed(seed)
    norms = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = 1.0
        if not norm.affine:
            continue
        norm.weight.copy_(torch.randn(norm.weight.shape, generator=generator))
        norm.weight[0] = 0.0
        norm.bias.copy_(torch.randn(norm.bias.shape, generator=generator))
    for name, value in net.named_parameters():
        if name.endswith(".shift"):
            value.copy_(0.3 * torch.randn(value.shape, generator=generator))
    net.train()
    net(example)
    return net.eval()


def exported(make, spec, example=None):
    """The hard network of a prepared one and its graph."""
    example = images(16) if example is None else example
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = randomised(prepare(make(), spec, example=example), example)
    converted = convert(net, spec)
    put(net, converted)
    return net, network_graph(net, converted, example)


@torch.no_grad()
def in_double(net, graph):
    """The network in float64, with the levels times the scale, which float32 has rounded."""
    net = net.double()
    for node in graph:
        if isinstance(node, Layer) and node.codes is not None:
            exact = node.codes.levels().double() * node.codes.scale.double()
            net.get_submodule(node.path).weight.copy_(exact)
    return net


@torch.no_grad()
def float_codes(net, network, x):
    """Name of each quantizer's node -> the codes that the float network gives there."""
    found = {}
    handles = [
        module.register_forward_hook(lambda _, __, y, name=name: found.update({name: y}))
        for name, module in activation_quantizers(net).items()
    ]
    net(x)
    for handle in handles:
        handle.remove()
    nodes = [node for node in network.graph if isinstance(node, Quantize)]
    return {n.name: as_codes(found[n.path], network.rules[n.name]) for n in nodes}
