"""Post-training quantization of a whole network: codes, steps, statistics and biases."""

import pytest
import torch
from torch import nn

from qat.errors import SpecError
from qat.export.packed.convert import convert
from qat.functional.comq import output_error
from qat.nn.weight import WeightQuantizer
from qat.quantize.gram import grams_of, output_means
from qat.quantize.initial import fit_codes, start_weights
from qat.quantize.plan import resolve
from qat.quantize.prepare import enable_quantizers, prepare
from qat.spec.initial import InitSpec
from qat.spec.quant import QuantSpec

GRIDS = [
    (1, "binary"), (2, "ternary"), (2, "ternary_threshold"), (2, "uniform"), (3, "uniform"),
    (4, "uniform"), (8, "uniform"), (2, "power_of_two"), (4, "power_of_two"), (6, "power_of_two"),
]  # fmt: skip


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=4, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 12), nn.ReLU(), nn.Linear(12, 5),
    )  # fmt: skip


def images():
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(16, 2, 8, 8, generator=generator) + 0.3 for _ in range(3)]


def options(bits=4, grid="uniform", granularity="channel", **weight):
    weight = {"bits": bits, "grid": grid, "granularity": granularity, **weight}
    return QuantSpec.from_dict({"weight": weight, "activation": {"bits": 4}})


def started(quant=None, net=None, **init):
    quant, net = quant or options(), net or network()
    prepare(net, quant, example=images()[0])
    plan = resolve(net, quant)
    return net, plan, start_weights(net, plan, InitSpec(**init), images)


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize(("bits", "grid"), GRIDS)
@pytest.mark.parametrize("method", ["rounding", "comq", "magr_comq"])
def test_weights_are_points_that_projection_and_export_keep(method, bits, grid, granularity):
    quant = options(bits, grid, granularity)
    net, plan, _ = started(quant, method=method)
    quantizer = WeightQuantizer(bits, granularity, grid)
    converted = convert(net, plan)
    for name in plan.quantized:
        weight = net.get_submodule(name).weight.detach()
        # a mean of equal numbers may be off in the last bit
        torch.testing.assert_close(quantizer(weight), weight, rtol=3e-7, atol=0)
        torch.testing.assert_close(converted.weights[name].hard(), weight, rtol=3e-7, atol=0)


@pytest.mark.parametrize("order", ["cyclic", "greedy"])
@pytest.mark.parametrize("method", ["comq", "magr_comq"])
@pytest.mark.parametrize(("bits", "grid"), GRIDS)
def test_never_worse_than_rounding(bits, grid, method, order):
    _, plan, fits = started(options(bits, grid), method=method, order=order)
    assert [fit.name for fit in fits] == list(plan.quantized)
    assert all(fit.error <= fit.rounding * (1 + 1e-6) for fit in fits)
    assert sum(fit.error for fit in fits) < 0.9 * sum(fit.rounding for fit in fits)


def test_codes_of_a_layer_are_those_of_comq():
    layer, x = nn.Linear(12, 6), torch.randn(50, 12) @ torch.randn(12, 12)
    gram = grams_of(layer, {"it": layer.weight}, [x])["it"]
    quantizer = WeightQuantizer(3, "channel", "uniform")
    point, (rounding, error) = fit_codes(layer.weight, gram, quantizer, InitSpec())
    rows = layer.weight.detach().double().unsqueeze(0)
    whole = output_error(rows, torch.zeros_like(rows), gram).sum()
    found = output_error(rows, point.double().unsqueeze(0), gram).sum() / whole
    assert error == pytest.approx(float(found), rel=1e-6)
    assert error < rounding
    codes, scale = quantizer.encode(point)
    assert torch.equal(quantizer.decode(codes, scale), point)


def test_rounding_is_the_projection_but_for_the_last_digits_of_its_scale():
    float_net = network()
    net, plan, fits = started(net=network(), method="rounding", biases=False, batchnorm=False)
    assert fits == []
    quantizer = WeightQuantizer(4, "channel", "uniform")
    for name in plan.quantized:
        codes, _ = quantizer.encode(float_net.get_submodule(name).weight)
        assert torch.equal(quantizer.encode(net.get_submodule(name).weight.detach())[0], codes)


def test_biases_bring_back_the_means_and_statistics_are_of_the_quantized_network():
    quant, float_net = options(3), network()
    prepare(float_net, quant, example=images()[0])
    enable_quantizers(float_net, False)
    last = {"10": float_net.get_submodule("10").weight}
    wanted = output_means(float_net, last, images())["10"]
    for is_corrected in (False, True):
        net, _, _ = started(quant, batchnorm=False, biases=is_corrected)
        last = {"10": net.get_submodule("10").weight}
        off = (output_means(net, last, images())["10"] - wanted).abs().max()
        assert (off < 1e-6) == is_corrected
    net, _, _ = started(quant)
    statistics = net[1].running_mean.clone()
    outputs = torch.cat([net[0](x) for x in images()])
    torch.testing.assert_close(statistics, outputs.mean(dim=(0, 2, 3)), atol=1e-5, rtol=1e-4)


def test_the_same_images_give_the_same_bits():
    first, second = started()[0].state_dict(), started()[0].state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_what_cannot_start_is_refused():
    with pytest.raises(SpecError, match=r"quant.weight.method=lsq has none; use init=null"):
        started(
            QuantSpec.from_dict(
                {"rule": {"name": "float_only"}, "weight": {"bits": 4, "method": "lsq"}}
            )
        )
    with pytest.raises(SpecError, match=r"quant.weight.mu=0.4.*use a mu above 0.5"):
        started(options(4, "power_of_two", mu=0.4))
    made = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(8, 4)), nn.ReLU())
    quant = options()
    prepare(made, quant, example=torch.randn(4, 8))
    with pytest.raises(SpecError, match=r"made anew in every forward"):
        start_weights(made, resolve(made, quant), InitSpec(), lambda: [torch.randn(4, 8)])
    up = nn.Sequential(nn.ConvTranspose2d(2, 4, 2), nn.ReLU())
    with pytest.raises(SpecError, match=r"the weight 0 enters no linear layer.*use init=rounding"):
        started(net=up)
    started(net=nn.Sequential(nn.ConvTranspose2d(2, 4, 2), nn.ReLU()), method="rounding")
