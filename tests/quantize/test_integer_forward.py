"""Networks by integer sums: a code moves only where a jump lies within a float sum's rounding."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from qat import QuantOptimizer, QuantSpec, bcgd, parameter_groups, prepare, set_runtime
from qat.functional.coded import Coded
from qat.models.small import CifarResNet
from qat.nn.activation import ActivationQuantizer
from qat.quantize.calibrate import start_steps
from qat.quantize.plan import weight_projections
from qat.spec.quant import ActivationSpec, WeightSpec

UNIT = 2.0**-24  # of float32, of one rounding


def trained(weight_bits, activation_bits, granularity):
    """A small ResNet after three steps, with hard weights."""
    torch.manual_seed(0)
    spec = QuantSpec(
        weight=WeightSpec(bits=weight_bits, granularity=granularity),
        activation=ActivationSpec(bits=activation_bits),
    )
    images = torch.randn(128, 3, 16, 16)
    net = prepare(CifarResNet(8, num_classes=10, in_channels=3), spec, example=images[:2])
    start_steps(net, spec, [images])
    groups = parameter_groups(net.named_parameters(), lr=0.05, weight_decay=0.0, step_rate=0.01)
    optimizer = QuantOptimizer(
        torch.optim.SGD(groups, lr=0.05), weight_projections(net, spec), bcgd()
    )
    for _ in range(3):
        F.cross_entropy(net(images), torch.arange(128) % 10).backward()
        optimizer.step()
        optimizer.zero_grad()
    return net.eval(), images


def codes(quantizer, x):
    return (quantizer(x) / quantizer.step).round()


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize(("weight_bits", "activation_bits"), [(1, 4), (2, 4), (4, 4), (8, 8)])
def test_codes_that_move_lie_at_a_jump(weight_bits, activation_bits, granularity):
    net, images = trained(weight_bits, activation_bits, granularity)
    seen, products = [], {}

    def keep(module, args, result):
        if isinstance(args[0], Coded):
            products[module] = (args[0].as_subclass(torch.Tensor), result)

    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(keep)
    with torch.no_grad(), set_runtime(integer_forward="on"):
        logits = net(images)
    moved = total = 0
    for block in (m for m in net.modules() if getattr(m, "conv1", None) in products):
        x, own = products[block.conv1]  # what conv2 gives is added to before its quantizer
        conv, norm, quantizer = block.conv1, block.bn1, block.relu1
        assert isinstance(quantizer, ActivationQuantizer)
        with torch.no_grad():
            options = (conv.bias, conv.stride, conv.padding)
            floats = F.conv2d(x, conv.weight, *options)
            sizes = F.conv2d(x.abs().double(), conv.weight.abs().double(), *options)
            terms = conv.weight[0].numel()
            # a float sum of so many products, in any order, and ours with its two roundings
            bound = sizes * UNIT * (terms + 3)
            assert ((own.double() - floats.double()).abs() <= bound).all()
            slope = (norm.weight / (norm.running_var + norm.eps).sqrt()).abs().view(-1, 1, 1)
            before = [norm(y) for y in (own, floats)]
            rest = 8 * UNIT * (before[0].abs() + norm.bias.abs().view(-1, 1, 1) + slope * sizes)
            differ = codes(quantizer, before[0]) != codes(quantizer, before[1])
            position = before[0].double() / quantizer.step
            to_jump = (position - position.round()).abs() * quantizer.step
            assert (to_jump[differ] <= (bound * slope + rest)[differ]).all()
        moved += int(differ.sum())
        total += differ.numel()
        seen.append(block)
    assert len(seen) == 3
    assert moved <= total * 1e-3
    assert torch.isfinite(logits).all()
