"""Quantization options: the config group `quant`, typed and range-checked; standard library only.

Nothing here imports torch, so a wrong option is answered before anything heavy loads.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from qat.errors import SpecError
from qat.names import Derivative, StepDerivative
from qat.spec.schema import check, option, read

Bits = Literal[1, 2, 3, 4, 5, 6, 7, 8, 32]
RuleName = Literal["float_only", "binary_connect", "binary_relax", "bcgd"]
Grid = Literal["binary", "ternary", "ternary_threshold", "uniform", "power_of_two"]
Granularity = Literal["tensor", "channel"]
StepStart = Literal["table", "batches"]
WeightMethod = Literal["update", "lsq", "dorefa", "reste", "biper"]
ActivationKind = Literal["staircase", "sign", "lsq", "pact", "dorefa"]
Shift = Literal["none", "channel"]
EndPolicy = Literal["quantized", "float"]

Group = TypeVar("Group", "WeightSpec", "ActivationSpec")

FLOAT_BITS = 32
GRID_BITS: dict[Grid, tuple[int, ...]] = {
    "binary": (1,),
    "ternary": (2,),
    "ternary_threshold": (2,),
    "uniform": (2, 3, 4, 5, 6, 7, 8),
    "power_of_two": (2, 3, 4, 5, 6),
}
# in-graph methods and their bit widths; the update rule leaves their tensors alone
METHOD_BITS: dict[WeightMethod, tuple[int, ...]] = {
    "lsq": (2, 3, 4, 5, 6, 7, 8),
    "dorefa": (1, 2, 3, 4, 5, 6, 7, 8),
    "reste": (1,),
    "biper": (1,),
}
_FLOAT_HINT = "use 32 for float, or quant=float for a float run"


def default_grid(bits: int) -> Grid:
    """The grid of a bit width unless said otherwise: 1 binary, 2 exact ternary, 3..8 uniform."""
    if bits == 1:
        return "binary"
    return "ternary" if bits == 2 else "uniform"


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleSpec:
    """Which update rule moves the weights, and its numbers (`qat.optim.rule`).

    Attributes:
        name: float_only, binary_connect, binary_relax or bcgd.
        rho: blend of bcgd, 0 (BinaryConnect) .. 1 (projected gradient).
        initial: relaxation lambda of binary_relax at the first quantized step, > 0.
        final: lambda at the end of the relaxed phase, >= initial.
        hard_from: share of the quantized phase after which theta = 1; 0 (at once) .. 1 (never).
    """

    name: RuleName = "bcgd"
    rho: float = option(1e-5, low=0, high=1)
    initial: float = option(1.0, above=0)
    final: float = option(359.0, above=0)
    hard_from: float = option(0.75, low=0, high=1)

    def __post_init__(self) -> None:
        check(self, "quant.rule")
        if self.final < self.initial:
            raise SpecError(
                f"quant.rule.final must be >= quant.rule.initial={self.initial:g}; "
                f"got {self.final:g}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightSpec:
    """How a conv or linear weight is quantized.

    Attributes:
        method: update (the rule projects the latent weights), or a quantizer inside the graph:
            lsq, dorefa, reste, biper (`qat.nn.parametrization`), trained by the base optimizer.
        bits: 1..8, or 32 for float.
        grid: null chooses by bits (1 binary, 2 ternary, 3..8 uniform); update only.
        granularity: one scale per tensor or per output channel (dorefa: tensor).
        mu: free parameter of power_of_two as a fraction of max|w|, in (0, 1].
        derivative: coarse derivative of an in-graph method's rounding; null for the method's own.
    """

    method: WeightMethod = "update"
    bits: Bits = option(1, hint=_FLOAT_HINT)
    grid: Grid | None = None
    granularity: Granularity = "tensor"
    mu: float = option(0.75, above=0, high=1)
    derivative: Derivative | None = None

    def __post_init__(self) -> None:
        check(self, "quant.weight")
        if self.is_in_graph:
            self._check_in_graph()
        elif self.derivative is not None and self.method == "update":
            raise SpecError(
                f"quant.weight.derivative={self.derivative} needs an in-graph quant.weight.method "
                f"({', '.join(METHOD_BITS)}); the update rules take the gradient at Q(w) as it is"
            )
        if self.grid is not None and self.is_quantized and self.bits not in GRID_BITS[self.grid]:
            allowed = ", ".join(str(b) for b in GRID_BITS[self.grid])
            raise SpecError(
                f"quant.weight.grid={self.grid} needs quant.weight.bits in {allowed}; "
                f"got {self.bits}"
            )

    def _check_in_graph(self) -> None:
        if self.bits not in METHOD_BITS[self.method]:
            allowed = ", ".join(str(b) for b in METHOD_BITS[self.method])
            raise SpecError(
                f"quant.weight.method={self.method} needs quant.weight.bits in {allowed}; "
                f"got {self.bits}"
            )
        if self.grid is not None:
            raise SpecError(
                f"quant.weight.grid={self.grid} is for quant.weight.method=update; "
                f"{self.method} has levels of its own, set quant.weight.grid=null"
            )
        if self.method == "dorefa" and self.granularity == "channel":
            raise SpecError(
                "quant.weight.granularity=channel is not offered by quant.weight.method=dorefa, "
                "whose scale is the layer's; use tensor"
            )

    @property
    def is_quantized(self) -> bool:
        """Whether the weight lives on a grid at all."""
        return self.bits < FLOAT_BITS

    @property
    def is_in_graph(self) -> bool:
        """Whether a parametrization quantizes the weight, instead of the update rule."""
        return self.is_quantized and self.method != "update"


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivationSpec:
    """How an activation is quantized (`qat.nn.activation`, `sign_activation`, `learned_clip`).

    Attributes:
        kind: staircase (the papers' quantized ReLU), sign (levels -1 and 1, one bit), lsq (learned
            step by its own gradient), pact (learned clip) or dorefa (clip at 1).
        bits: 1..8, or 32 to leave activations alone.
        derivative: coarse derivative in x.
        step_derivative: coarse derivative in alpha; staircase only.
        step_start: table (half-normal fixed point; pact: its paper's clip of 10), or batches (the
            fixed point times the deviation measured on the first batches).
        step_rate: learning rate of alpha as a fraction of the weights'; 0 freezes alpha.
        shift: channel gives a sign a learned shift per channel.
    """

    kind: ActivationKind = "staircase"
    bits: Bits = option(4, hint="use 32 to leave activations alone")
    derivative: Derivative = "clipped_relu"
    step_derivative: StepDerivative = "three_valued"
    step_start: StepStart = "table"
    step_rate: float = option(0.01, low=0, high=1)
    shift: Shift = "none"

    def __post_init__(self) -> None:
        check(self, "quant.activation")
        if self.kind == "sign" and self.bits not in (1, FLOAT_BITS):
            raise SpecError(
                f"quant.activation.kind=sign has one bit, got quant.activation.bits={self.bits}; "
                "set quant.activation.bits=1 or quant.activation.kind=staircase"
            )
        if self.shift != "none" and self.kind != "sign":
            raise SpecError(
                f"quant.activation.shift={self.shift} needs quant.activation.kind=sign; "
                f"got {self.kind}"
            )

    @property
    def is_quantized(self) -> bool:
        """Whether the activation is replaced by a staircase at all."""
        return self.bits < FLOAT_BITS


@dataclass(frozen=True, slots=True, kw_only=True)
class EndsSpec:
    """Whether the weights of the first and of the last conv or linear layer are quantized.

    Attributes:
        first: policy for the first one, which sees the image.
        last: policy for the last one, which gives the logits.
    """

    first: EndPolicy = "quantized"
    last: EndPolicy = "quantized"

    def __post_init__(self) -> None:
        check(self, "quant.ends")


@dataclass(frozen=True, slots=True, kw_only=True)
class Override:
    """Options for the layers whose dotted module name matches a glob; the last match wins."""

    match: str
    weight: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    activation: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        check(self, f"quant.overrides[match={self.match}]")


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantSpec:
    """What is quantized, on which grids, and by which rule: the config group `quant`.

    Attributes:
        rule: update rule and its numbers.
        weight: options of every conv and linear weight.
        activation: options of every activation.
        ends: policy for the first and the last layer's weight.
        input_bits: bits of a signed quantizer on the image, or null for float images.
        overrides: per-layer changes in order; the last match wins.

    Raises:
        SpecError: contradictory options.
    """

    rule: RuleSpec = dataclasses.field(default_factory=RuleSpec)
    weight: WeightSpec = dataclasses.field(default_factory=WeightSpec)
    activation: ActivationSpec = dataclasses.field(default_factory=ActivationSpec)
    ends: EndsSpec = dataclasses.field(default_factory=EndsSpec)
    input_bits: Literal[2, 3, 4, 5, 6, 7, 8] | None = None
    overrides: tuple[Override, ...] = ()

    def __post_init__(self) -> None:
        check(self, "quant")
        for override in self.overrides:
            weight_of(self, override)
            rate = activation_of(self, override).step_rate
            if rate not in (0, self.activation.step_rate):
                raise SpecError(
                    f"{_path(override, 'activation')}.step_rate must be 0 (frozen) or that of "
                    f"quant.activation, {self.activation.step_rate:g}; got {rate:g}"
                )
        self._check_rule()

    def _check_rule(self) -> None:
        projected = any(w.is_quantized and not w.is_in_graph for w in self._every_weight())
        if self.rule.name == "float_only" and projected:
            raise SpecError(
                "quant.rule.name=float_only moves float weights, but quant.weight.bits="
                f"{self.weight.bits}; set quant.weight.bits=32 or choose another rule"
            )
        if self.rule.name != "float_only" and not projected:
            raise SpecError(
                f"quant.rule.name={self.rule.name} has no weight to quantize: quant.weight.bits="
                f"{self.weight.bits}, quant.weight.method={self.weight.method}; use "
                "quant.rule.name=float_only"
            )

    def _every_weight(self) -> list[WeightSpec]:
        return [self.weight, *(weight_of(self, override) for override in self.overrides)]

    @property
    def has_quantized_weights(self) -> bool:
        """Whether any weight is quantized."""
        return any(weight.is_quantized for weight in self._every_weight())

    @property
    def has_quantizers(self) -> bool:
        """Whether any weight, any activation or the image is quantized."""
        every = [self.activation, *(activation_of(self, override) for override in self.overrides)]
        return (
            self.has_quantized_weights
            or self.input_bits is not None
            or any(activation.is_quantized for activation in every)
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "QuantSpec":
        """Read the config group `quant`; raises SpecError naming the key for anything wrong."""
        return read(cls, values, "quant")


def weight_of(spec: QuantSpec, override: Override) -> WeightSpec:
    """The weight options of a layer that `override` matches."""
    return _merged(spec.weight, override.weight, _path(override, "weight"))


def activation_of(spec: QuantSpec, override: Override) -> ActivationSpec:
    """The activation options of a layer that `override` matches."""
    return _merged(spec.activation, override.activation, _path(override, "activation"))


def _path(override: Override, part: str) -> str:
    return f"quant.overrides[match={override.match}].{part}"


def _merged(base: Group, changes: Mapping[str, Any], path: str) -> Group:
    fields = {f.name: getattr(base, f.name) for f in dataclasses.fields(base)}
    if "bits" in changes:
        fields.pop("grid", None)  # a grid chosen for other bits says nothing about these
    return read(type(base), {**fields, **changes}, path)
