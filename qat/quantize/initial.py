"""Post-training quantization: weights put on their grids from images, before any training step."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qat.errors import SpecError
from qat.functional.comq import comq, output_error
from qat.functional.grid import short_scale
from qat.functional.magr import magr
from qat.functional.power_of_two import nearest_power
from qat.nn.weight import WeightQuantizer
from qat.quantize.batchnorm import reestimate_batchnorm
from qat.quantize.calibrate import start_steps
from qat.quantize.gram import grams_of, output_means, passes
from qat.quantize.plan import Plan, weight_quantizer
from qat.quantize.prepare import enable_quantizers
from qat.quantize.weights import LAYER_TYPES, latent_weight, weight_place
from qat.spec.initial import InitSpec, check_start

Images = Callable[[], Iterable[Tensor]]
Told = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class LayerFit:
    """What became of one layer's weight.

    Attributes:
        name: of the layer.
        rounding: squared error of its outputs by rounding, as a share of their own square.
        error: the same of the weights that were taken.
    """

    name: str
    rounding: float
    error: float


def check_init(plan: Plan, spec: InitSpec) -> None:
    """Refuse a network with a weight that has no starting codes.

    Args:
        plan: of the network.
        spec: how weights are to start.

    Raises:
        SpecError: as `check_start`; or a weight is made by the forward.
    """
    for options in plan.quantized.values():
        check_start(spec, options)
    for name in plan.made:
        raise SpecError(
            f"init={spec.method}: the weight {name} is made anew in every forward, so it has no "
            "codes to start from; leave it float by an override with bits=32, or use init=null"
        )


@torch.no_grad()
def start_weights(
    model: nn.Module, plan: Plan, spec: InitSpec, images: Images, *, told: Told = lambda *_: None
) -> list[LayerFit]:
    """Put a prepared network's weights, steps, statistics and biases where `spec` says.

    In this order, each from the same images:

        weights     codes by `spec.method`, from Gram matrices of what enters each layer in the
                    float network; the parameters then hold points of their grids
        steps       of activation quantizers, measured in the float network (`start_steps`)
        biases      b <- b + mean of the float network's output - mean of the quantized one's,
                    layer by layer from the image on
        statistics  of BatchNorm, of the quantized network; before the biases, too

    Memory: Gram matrices of as many layers at a time as fit into half a GiB, one at least; a larger
    network is run through the images more often.

    Args:
        model: prepared network that holds float weights; changed in place, and quantized after.
        plan: its plan.
        spec: how weights start.
        images: gives the same batches each time, on the network's device.
        told: called before each layer with its name, its number from 0 and how many there are.

    Returns:
        What became of each layer; empty for rounding, which looks at none.

    Raises:
        SpecError: see `check_init`; or a weight enters no linear layer or convolution of one or two
            axes, so that comq has no outputs to keep.
    """
    check_init(plan, spec)
    enable_quantizers(model, False)
    weights = {name: latent_weight(model, name) for name in plan.quantized}
    biases = _biases(model, weights) if spec.biases else {}
    means = output_means(model, {name: weights[name] for name in biases}, images())
    fits, points = _fitted(model, plan, spec, images, told)
    start_steps(model, plan, images(), every=True)  # of the float network, and enables all
    for name, point in points.items():
        weights[name].copy_(point)
    if spec.batchnorm:
        reestimate_batchnorm(model, images())
    for name, mean in means.items():
        moved = mean - output_means(model, {name: weights[name]}, images())[name]
        biases[name].add_(moved.to(biases[name].dtype))
    if spec.batchnorm and means:
        reestimate_batchnorm(model, images())
    return fits


def _fitted(
    model: nn.Module, plan: Plan, spec: InitSpec, images: Images, told: Told
) -> tuple[list[LayerFit], dict[str, Tensor]]:
    """What became of each layer, and its weight on its grid; the network keeps its float ones."""
    weights = {name: latent_weight(model, name) for name in plan.quantized}
    quantizers = {name: weight_quantizer(options) for name, options in plan.quantized.items()}
    if spec.method == "rounding":
        return [], {name: _rounded(weights[name], q) for name, q in quantizers.items()}
    fits: list[LayerFit] = []
    points: dict[str, Tensor] = {}
    for group in passes(weights):
        grams = grams_of(model, group, images())
        for name, weight in group.items():
            told(name, len(fits), len(weights))
            if name not in grams:
                raise SpecError(
                    f"init={spec.method}: the weight {name} enters no linear layer, and no "
                    "convolution of one or two axes, whose outputs could be kept; use "
                    "init=rounding, or leave it float by an override with bits=32"
                )
            gram = grams.pop(name)
            points[name], numbers = fit_codes(weight, gram, quantizers[name], spec)
            fits.append(LayerFit(name, *numbers))
    return fits, points


def fit_codes(
    weight: Tensor, gram: Tensor, quantizer: WeightQuantizer, spec: InitSpec
) -> tuple[Tensor, tuple[float, float]]:
    """A layer's weight on its grid, by COMQ from the scale of its projection; never worse than it.

    Scales are those that the grid's projection keeps: powers of two on that grid, and of few
    binary digits (`short_scale`) on others. Each scale group takes rounding where that is better.

    Args:
        weight: (O, I, ...).
        gram: of the layer's inputs, (G, N, N) float64.
        quantizer: of the weight.
        spec: method and its numbers.

    Returns:
        The point of the grid, as `weight`; squared errors of the outputs, by rounding and by this
        point, as shares of the outputs' own square.
    """
    rows = weight.detach().double().reshape(len(gram), -1, gram.shape[-1])
    start = magr(rows, gram, alpha=spec.magr_alpha) if spec.method == "magr_comq" else rows
    _, scale = quantizer.encode(start.float().view(weight.shape))
    count = (len(gram), -1, 1) if quantizer.granularity == "channel" else (1, 1, 1)
    allowed = nearest_power if quantizer.kind == "power_of_two" else short_scale
    z, scale = comq(
        rows,
        gram,
        allowed(scale).double().view(count),
        torch.tensor(quantizer.levels, dtype=torch.float64, device=rows.device),
        start=start,
        sweeps=spec.sweeps,
        order=spec.order,
        moves_scale=spec.moves_scale,
        allowed=lambda s: allowed(s).double(),
    )
    plain = _rounded(weight, quantizer).double().view(rows.shape)
    point = z * scale
    errors = [output_error(rows, v, gram) for v in (plain, point)]
    before, after = ([e.sum()] if scale.numel() == 1 else [e] for e in errors)
    point = torch.where(after[0] < before[0], point, plain)
    whole = output_error(rows, torch.zeros_like(rows), gram).sum().clamp_min(1e-300)
    shares = float(errors[0].sum() / whole), float(output_error(rows, point, gram).sum() / whole)
    return point.to(weight.dtype).view(weight.shape), shares


def _rounded(weight: Tensor, quantizer: WeightQuantizer) -> Tensor:
    """The projection of a weight, with a scale with which it is its own projection."""
    codes, scale = quantizer.encode(weight)
    kept = scale if quantizer.kind == "power_of_two" else short_scale(scale)
    return quantizer.decode(codes, kept, dtype=weight.dtype)


def _biases(model: nn.Module, names: Iterable[str]) -> dict[str, Tensor]:
    """Biases of the layers of these weights that have one."""
    found: dict[str, Tensor] = {}
    for name in names:
        owner, attribute = weight_place(model, name)
        bias = getattr(owner, "bias", None)
        if attribute == "weight" and isinstance(owner, LAYER_TYPES) and bias is not None:
            found[name] = bias
    return found
