"""Audit of a network: what is quantized, on which levels, fed by what, at what cost."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qat.errors import NotOnGridError
from qat.nn.parametrization import WeightParametrization
from qat.nn.weight import WeightQuantizer
from qat.quantize.flow import (
    CONV_TYPES,
    FLOAT,
    LAYER_TYPES,
    LayerFlow,
    Source,
    trace,
)
from qat.quantize.plan import (
    Plan,
    WeightPlan,
    latent_weight,
    layer_quantizer,
    resolve,
    weight_parametrizations,
)
from qat.spec.quant import FLOAT_BITS, QuantSpec

# ACE counts floats as bfloat16, the narrowest float that trains and runs without loss
_ACE_FLOAT_BITS = 16
_INPUT_REASONS = {
    "image": "network input; set quant.input_bits to quantize it",
    "pooled": "average of quantized values",
    "float": "no quantizer on its way",
    "quantized": "",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerAudit:
    """One conv or linear layer.

    Attributes:
        name: dotted module name.
        weights: number of weights.
        weight_bits: 1..8, or 32.
        grid: name of the grid, "" if float.
        levels: largest number of different values found in a scale group.
        scale: mean over the scale groups of largest |weight| / largest level.
        source: what feeds it: image, quantized, pooled or float.
        input_bits: bits of that input (32 unless quantized).
        macs: multiply-accumulates per image.
        reason: why the weight is float, "" if it is not.
        input_reason: why the input is float, or holds more values than its bits say; else "".
    """

    name: str
    weights: int
    weight_bits: int
    grid: str
    levels: int
    scale: float
    source: str
    input_bits: int
    macs: int
    reason: str
    input_reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """All layers of a network and its totals.

    Attributes:
        layers: conv and linear layers in the order of execution.
        other: parameters outside of them -> (number, why float).
        bits: mean bits per conv and linear weight.
        quantized_share: share of the conv and linear weights that lie on a grid, 0..1; weights
            out of reach count as float ones: of fused attention projections, of transposed
            convolutions, of recurrent layers.
        bytes: size of all weights packed at their bits, scales and float residue at 4 bytes.
        float_bytes: size of all parameters and statistics at 4 bytes.
        bops: bit operations per image of the conv and linear layers, sum of
            MACs * weight bits * input bits, floats 32.
        ace: arithmetic computation effort per image, the same sum with floats as 16 bits.

    Source: BOPs in the short form used by HAWQ-V3; ACE of arXiv:2112.00133.
    """

    layers: tuple[LayerAudit, ...]
    other: dict[str, tuple[int, str]]
    bits: float
    quantized_share: float
    bytes: int
    float_bytes: int
    bops: int
    ace: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for summary.json."""
        return asdict(self)


def audit(model: nn.Module, spec: QuantSpec | Plan, example: Tensor) -> Audit:
    """Audit a prepared network whose parameters hold hard weights.

    Args:
        model: prepared network, with Q(w) in its parameters.
        spec: the options it was prepared with, or its plan.
        example: images (N, C, H, W) for one forward pass.

    Raises:
        NotOnGridError: a weight that should be on its grid holds another value.
    """
    plans = resolve(model, spec).weights
    modules = dict(model.named_modules())
    flows = trace(model, example)
    # layers that the example did not reach come last, without work
    names = [*flows, *(name for name in plans if name not in flows)]
    missing = LayerFlow(FLOAT, 0)
    layers = tuple(
        _layer(name, modules[name], plans[name], flows.get(name, missing)) for name in names
    )
    # a tied weight is stored once, as its first layer's
    stored = {name: plan for name, plan in plans.items() if not plan.is_shared}
    weights = sum(modules[name].weight.numel() for name in stored)
    on_grid = sum(modules[n].weight.numel() for n, p in stored.items() if p.spec.is_quantized)
    weight_bits = sum(modules[n].weight.numel() * p.spec.bits for n, p in stored.items())
    elements = _elements(model)
    scales = sum(_scale_groups(modules[n], p) for n, p in stored.items() if p.spec.is_quantized)
    return Audit(
        layers=layers,
        other=_other_parameters(model),
        bits=weight_bits / max(1, weights),
        quantized_share=on_grid / max(1, weights + sum(p.numel() for p in _out_of_reach(model))),
        bytes=(weight_bits + 7) // 8 + 4 * (elements - weights + scales),
        float_bytes=4 * elements,
        bops=sum(layer.macs * layer.weight_bits * layer.input_bits for layer in layers),
        ace=sum(
            layer.macs * min(layer.weight_bits, _ACE_FLOAT_BITS) * min(layer.input_bits, 16)
            for layer in layers
        ),
    )


def check_on_grid(
    name: str, weight: Tensor, quantizer: WeightQuantizer | WeightParametrization
) -> tuple[int, float]:
    """Number of different values per scale group (the largest) and mean scale of a hard weight.

    Raises:
        NotOnGridError: more values than levels, or a value that is no level times the scale.
    """
    rows = weight.detach().flatten(1) if quantizer.granularity == "channel" else weight.detach()
    rows = rows.reshape(rows.shape[0] if quantizer.granularity == "channel" else 1, -1)
    grid = torch.tensor(quantizer.levels, dtype=torch.float64)
    most = 0
    scales: list[float] = []
    for row in rows:
        values = torch.unique(row).double().cpu()
        scale = _fitting_scale(values, grid)
        if len(values) > len(grid) or scale is None:
            raise NotOnGridError(
                f"{name}: {len(values)} different values found where the {quantizer.kind} grid of "
                f"{quantizer.bits} bits has {len(grid)} levels; the weight is not on its grid. "
                "QuantOptimizer puts it there by each step (a rule that relaxes: inside its "
                "hard_weights()), or do p.copy_(q(p)) for p, q in weight_projections(...).items()"
            )
        most = max(most, len(values))
        scales.append(scale)
    return most, sum(scales) / len(scales)


def _fitting_scale(values: Tensor, grid: Tensor) -> float | None:
    """The scale s with every value in s * grid (relative tolerance 1e-5), or None."""
    largest = float(values.abs().max())
    if largest == 0:
        return 0.0
    # the largest level itself may be unused; on a grid that is not symmetric it is negative
    for level in sorted({abs(float(k)) for k in grid if k != 0}, reverse=True):
        scale = largest / level
        nearest = grid[torch.bucketize(values / scale, (grid[1:] + grid[:-1]) / 2)]
        distance = (values / scale - nearest).abs()
        if float(distance.max()) <= 1e-5 * max(1.0, float(grid.max())):
            return scale
    return None


def _layer(name: str, module: nn.Module, plan: WeightPlan, flow: LayerFlow) -> LayerAudit:
    weight: Tensor = module.weight  # type: ignore[assignment]
    grid, levels, scale = "", len(torch.unique(weight)), float(weight.detach().abs().mean())
    if plan.spec.is_quantized:
        quantizer = layer_quantizer(module, plan.spec)
        grid = str(quantizer.kind)
        levels, scale = check_on_grid(name, weight, quantizer)
    source: Source = flow.source
    return LayerAudit(
        name=name,
        weights=weight.numel(),
        weight_bits=plan.spec.bits,
        grid=grid,
        levels=levels,
        scale=scale,
        source=source.kind,
        input_bits=source.bits if source.kind == "quantized" else FLOAT_BITS,
        macs=flow.macs,
        reason=plan.reason,
        input_reason=_input_reason(module, flow),
    )


def _input_reason(module: nn.Module, flow: LayerFlow) -> str:
    if not flow.macs:
        return "not reached by the example"
    if flow.source.kind == "quantized" and not flow.source.has_zero and _pads_zeros(module):
        return "zero padding adds a third value to the signs"
    return _INPUT_REASONS[flow.source.kind]


def _pads_zeros(module: nn.Module) -> bool:
    if not isinstance(module, CONV_TYPES) or module.padding_mode != "zeros":
        return False
    return isinstance(module.padding, str) or any(module.padding)


def _scale_groups(module: nn.Module, plan: WeightPlan) -> int:
    weight: Tensor = module.weight  # type: ignore[assignment]
    return weight.shape[0] if plan.spec.granularity == "channel" else 1


def _elements(model: nn.Module) -> int:
    """Parameters and statistics of the network; scales of in-graph weights are counted apart."""
    every = [*model.parameters(), *model.buffers()]
    scales = [t for _, w in weight_parametrizations(model) for t in (*w.parameters(), *w.buffers())]
    return sum(t.numel() for t in every if t.is_floating_point()) - sum(t.numel() for t in scales)


def _out_of_reach(model: nn.Module) -> dict[Tensor, str]:
    """Weights that multiply activations in layers that cannot be quantized, and in which."""
    transposed = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    recurrent = (nn.RNNBase, nn.RNNCellBase)
    kinds: dict[tuple[type[nn.Module], ...], tuple[str, str]] = {
        (nn.MultiheadAttention,): ("proj_weight", "fused projection of nn.MultiheadAttention"),
        transposed: ("weight", "weight of a transposed convolution"),
        recurrent: ("weight_", "weight of a recurrent layer"),
    }
    return {
        p: f"{title}, out of reach: counted as float"
        for classes, (part, title) in kinds.items()
        for module in model.modules()
        if isinstance(module, classes)
        for name, p in module.named_parameters(recurse=False)
        if part in name
    }


def _other_parameters(model: nn.Module) -> dict[str, tuple[int, str]]:
    """Parameters that are no conv or linear weight, by the reason why they stay float."""
    weights = {id(latent_weight(m)) for m in model.modules() if isinstance(m, LAYER_TYPES)}
    out_of_reach = _out_of_reach(model)
    other: dict[str, tuple[int, str]] = {}
    for name, p in model.named_parameters():
        if id(p) in weights:
            continue
        reason = "bias, normalisation or step" if p.ndim <= 1 else "not a conv or linear weight"
        reason = out_of_reach.get(p, reason)
        key = "vectors" if p.ndim <= 1 else name
        count = other.get(key, (0, ""))[0]
        other[key] = (count + p.numel(), reason)
    return other
