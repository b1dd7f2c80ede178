"""Weights by name: the parameters that enter products, and what an example has shown of them."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from torch import Tensor, nn
from torch.nn.utils import parametrize

from qat.nn.parametrization import WeightParametrization
from qat.quantize.products import Picture, Product

CONV_TYPES = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
LAYER_TYPES = (*CONV_TYPES, nn.Linear)
TRANSPOSED_TYPES = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
RECURRENT_TYPES = (nn.RNNBase, nn.RNNCellBase)
# where their weights are, for a network that no example has run through
_WEIGHTS: tuple[tuple[tuple[type[nn.Module], ...], str], ...] = (
    ((*LAYER_TYPES, *TRANSPOSED_TYPES), r"weight"),
    ((nn.MultiheadAttention,), r"(in|q|k|v)_proj_weight"),
    (RECURRENT_TYPES, r"weight_.*"),
)
_LATENT = re.compile(r"(^|\.)parametrizations\.([^.]+)\.original$")
_REACH = "_qat_reach"  # attribute of a prepared network


@dataclass(frozen=True, slots=True)
class Reach:
    """What an example has shown of the weights of a network.

    Attributes:
        weights: names of the weights that enter products -> why their values cannot be put on a
            grid, "" if they can.
        first: those that the image meets first.
        last: those that no other weight comes after.
        modules: those whose forward makes a product or calls a ReLU, directly.
    """

    weights: Mapping[str, str] = field(default_factory=dict)
    first: frozenset[str] = frozenset()
    last: frozenset[str] = frozenset()
    modules: frozenset[str] = frozenset()


def plain_key(key: str) -> str:
    """A key of a state dict as it is without quantizers: of a weight, not of what keeps it."""
    return _LATENT.sub(r"\1\2", key)


def weight_name(parameter: str) -> str:
    """Name of a weight: its layer's, or the parameter's own where it is no layer's `weight`.

    Args:
        parameter: full name, also of what a parametrization keeps.
    """
    plain = plain_key(parameter)
    return "" if plain == "weight" else plain.removesuffix(".weight")


def latent_weight(model: nn.Module, name: str = "") -> Tensor:
    """The parameter of this name, also where a parametrization computes the weight of it.

    Args:
        model: network, or a layer with name "".
        name: as `weight_name` gives it.
    """
    owner, attribute = weight_place(model, name)
    holder: Any = owner
    if parametrize.is_parametrized(owner, attribute):
        return cast(Tensor, holder.parametrizations[attribute].original)
    return cast(Tensor, getattr(holder, attribute))


def current_weight(model: nn.Module, name: str) -> Tensor:
    """The parameter of this name, or what a quantizer of ours makes of it."""
    owner, attribute = weight_place(model, name)
    return cast(Tensor, getattr(owner, attribute))


def weight_place(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that holds the weight of this name, and the attribute that is it."""
    owner, _, last = name.rpartition(".")
    module = model.get_submodule(owner)
    child = module if not name else dict(module.named_children()).get(last)
    return (module, last) if child is None else (child, "weight")


def weight_names(model: nn.Module, reach: Reach | None) -> dict[str, str]:
    """Names of the weights in the order of registration -> why one cannot be on a grid, or "".

    Without `reach` it is those of the layers of torch's own kinds; with it, these and whatever
    else enters a product. A parameter of several names has all of them.
    """
    reasons = {} if reach is None else reach.weights
    by_kind = dict(_by_kind(model))
    found: dict[str, str] = {}
    first_names: dict[int, str] = {}
    for full, parameter in model.named_parameters(remove_duplicate=False):
        name = weight_name(full)
        first = first_names.setdefault(id(parameter), name)
        if first in reasons:
            found[name] = reasons[first]
        elif name in by_kind:
            found[name] = by_kind[name]
    return found


def latent_weights(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter that enters products, once, by the first of its names."""
    found: dict[int, tuple[str, Tensor]] = {}
    for name in weight_names(model, known_reach(model)):
        weight = latent_weight(model, name)
        found.setdefault(id(weight), (name, weight))
    return dict(found.values())


def reach_of(model: nn.Module, picture: Picture) -> Reach:
    """What the products of one forward pass say of the weights that enter them."""
    parameters = {weight_name(n): p for n, p in model.named_parameters()}
    reasons: dict[str, str] = {}
    for product in picture.products:
        weight = product.weight
        if weight is None:
            continue
        if weight.kind == "weight":
            for name in map(weight_name, weight.parameters):
                reason = weight.through and f"{weight.through} makes the weight of it"
                if not reason and parameters[name].ndim < 2:
                    reason = "a vector has no levels of its own"
                reasons[name] = reasons.get(name) or reason
        elif weight.kind != "constant" or weight.after:
            for maker in _makers(picture, product):
                reasons[maker] = f"{_place_in_words(product)} multiplies by what is made of it"
    with_weight = [(p, p.weight.parameters) for p in picture.products if p.weight is not None]
    return Reach(
        weights=reasons,
        first=frozenset(weight_name(n) for p, own in with_weight if p.is_first for n in own),
        last=frozenset(weight_name(n) for p, own in with_weight if p.is_last for n in own),
        modules=frozenset(p.module for p in picture.products)
        | frozenset(call.module for call in picture.calls if call.is_activation),
    )


def keep_reach(model: nn.Module, reach: Reach) -> None:
    """Let a network remember what an example has shown of it."""
    setattr(model, _REACH, reach)


def known_reach(model: nn.Module) -> Reach | None:
    """What an example has shown of this network when it was prepared, None if there was none."""
    return cast(Reach | None, getattr(model, _REACH, None))


def weight_parametrizations(model: nn.Module) -> Iterator[tuple[str, WeightParametrization]]:
    """Name and in-graph quantizer of every parametrized weight in `model`."""
    for name, module in model.named_modules():
        if not parametrize.is_parametrized(module):
            continue
        for attribute, chain in module.parametrizations.items():
            if isinstance(chain[0], WeightParametrization):
                yield weight_name(f"{name}.{attribute}" if name else attribute), chain[0]


def _by_kind(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Names of the weights of torch's own layers, and what stands between them and a grid."""
    for name, module in model.named_modules():
        for kinds, pattern in _WEIGHTS:
            if not isinstance(module, kinds):
                continue
            own = [n for n, _ in module.named_parameters(recurse=False)]
            own += list(getattr(module, "parametrizations", ()))
            for attribute in own:
                if re.fullmatch(pattern, attribute):
                    full = f"{name}.{attribute}" if name else attribute
                    yield weight_name(full), _foreign(module, attribute)


def _foreign(module: nn.Module, attribute: str) -> str:
    if not parametrize.is_parametrized(module, attribute):
        return ""
    first = module.parametrizations[attribute][0]  # type: ignore[index]
    if isinstance(first, WeightParametrization):
        return ""
    return f"{type(first).__name__.strip('_')} makes the weight of it"


def _makers(picture: Picture, product: Product) -> list[str]:
    """Weights whose products give what stands in another product's place of the weight."""
    assert product.weight is not None
    numbers = product.weight.after
    made = [p for p in picture.products if p.number in numbers and p.weight is not None]
    return [
        weight_name(name)
        for maker in made
        if not maker.function.startswith("conv") and maker.weight is not None
        for name in maker.weight.parameters
    ]


def _place_in_words(product: Product) -> str:
    return f"{product.function} in {product.module or 'the network'}"
