"""The bound of float32 arithmetic holds for every value, and so for every code that it moved."""

import pytest
import torch

from qat.export.integer.graph import Quantize
from qat.export.integer.network import IntegerNetwork, as_codes, quantized, real
from qat.export.integer.trace import network_graph
from qat.export.packed.convert import convert, put
from qat.quantize.activations import activation_quantizers
from qat.spec.quant import QuantSpec
from support.networks import images, lenet, prepared, resnet18, weights
from support.products import mostly_slow
from support.rounding import near_jumps, rounding_bounds

CASES = {
    "resnet18": (resnet18, weights(1)),
    "channel": (resnet18, weights(4, granularity="channel")),
    "lenet": (lenet, QuantSpec(input_bits=8)),
    "signs": (lenet, QuantSpec.from_dict({"activation": {"kind": "sign", "bits": 1}})),
}


def hard(make, spec):
    """A network of hard weights whose batch norms have multipliers of all signs and sizes."""
    net = prepared(make, spec)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        net.train()(images(32, seed=1))
        for module in net.modules():
            if isinstance(module, (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)):
                module.weight.normal_()
                module.bias.normal_()
    net.eval()
    converted = convert(net, spec)
    put(net, converted)
    return net, IntegerNetwork(network_graph(net, converted, images(2)))


@torch.no_grad()
def seen(net, image):
    """Input and output of each activation quantizer in the float32 network."""
    found, handles = {}, []
    for name, module in activation_quantizers(net).items():

        def hook(_, args, out, name=name):
            found[name] = (args[0], out)

        handles.append(module.register_forward_hook(hook))
    net(image)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("case", mostly_slow(CASES, day=(2, 3)))
def test_float32_stays_within_the_bound_and_moves_codes_near_jumps_only(case):
    net, integers = hard(*CASES[case])
    image = images(64, seed=3)
    found = seen(net, image)
    nodes = [node for node in integers.graph if isinstance(node, Quantize)]
    assert len(nodes) == len(found)
    # every layer gets the codes that the float32 network gave it
    given = {n.name: as_codes(found[n.path][1], integers.rules[n.name]) for n in nodes}
    values = integers.values(image, given=given)
    bounds, near = rounding_bounds(integers, values), near_jumps(integers, values)
    for node in nodes:
        rule, exact = integers.rules[node.name], values[node.inputs[0]]
        distance = (found[node.path][0].double() - real(exact)).abs() / rule.step
        assert bool((distance <= bounds[node.name]).all()), node.path
        assert float(bounds[node.name].max()) < 0.1, node.path
        codes = quantized(rule, exact).terms[0].integers
        moved = codes != given[node.name].terms[0].integers
        assert not bool((moved & ~near[node.name]).any()), node.path
        assert float(near[node.name].double().mean()) < 0.02, node.path


def test_a_larger_error_than_float32s_breaks_the_bound():
    net, integers = hard(lenet, weights(1))
    image = images(8)
    found = seen(net, image)
    bounds = rounding_bounds(integers, integers.values(image))
    node = next(node for node in integers.graph if isinstance(node, Quantize))
    exact = real(integers.values(image)[node.inputs[0]])
    wrong = (found[node.path][0].half().double() - exact).abs() / integers.rules[node.name].step
    assert bool((wrong > bounds[node.name]).any())
