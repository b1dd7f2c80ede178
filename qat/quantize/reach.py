"""Reach of an example: what one forward pass has shown of the weights of a network."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import cast

from torch import Tensor, nn

from qat.quantize.call_sites import site_key
from qat.quantize.names import weight_name
from qat.quantize.picture import Picture, Product

# attributes of a prepared network
_REACH = "_qat_reach"


_EXAMPLE_SHAPE = "_qat_example_shape"


@dataclass(frozen=True, slots=True)
class Made:
    """A weight that a forward makes of parameters before it multiplies by it.

    Attributes:
        parameters: full names of these.
        own: those of them that nothing else is made of.
        through: the function that makes it.
        owner: module whose forward multiplies.
        site: place of the weight among the owner's call sites.
        shape: of the weight.
        has_zeros: whether some of a row are 0, or a mask is set on it; not whole rows alone.
    """

    parameters: frozenset[str]
    own: frozenset[str]
    through: str
    owner: str
    site: str
    shape: tuple[int, ...]
    has_zeros: bool


@dataclass(frozen=True, slots=True)
class Reach:
    """What an example has shown of the weights of a network.

    Attributes:
        weights: names of the weights that enter products -> why their values cannot be put on a
            grid, "" if they can.
        first: those that the image meets first.
        last: those that no other weight comes after.
        modules: those whose forward makes a product or calls a ReLU, directly.
        made: name of a layer -> the weight that its forward makes; these can be put on a grid where
            they are made.
    """

    weights: Mapping[str, str] = field(default_factory=dict)
    first: frozenset[str] = frozenset()
    last: frozenset[str] = frozenset()
    modules: frozenset[str] = frozenset()
    made: Mapping[str, Made] = field(default_factory=dict)

    def names(self, product: Product) -> list[str]:
        """Names of the weights behind a product's operand; none where it only makes one."""
        parameters = frozenset() if product.weight is None else product.weight.parameters
        for name, made in self.made.items():
            if made.parameters & parameters:
                return [name] if product.has_made_weight else []
        return sorted(map(weight_name, parameters))


def reach_of(model: nn.Module, picture: Picture) -> Reach:
    """What the products of one forward pass say of the weights that enter them."""
    vectors = {weight_name(n) for n, p in model.named_parameters() if p.ndim < 2}
    made = _made(picture)
    reasons: dict[str, str] = {}
    for product in picture.products:
        for name, reason in _obstacles(picture, product, made):
            reasons[name] = reasons.get(name) or reason
        for name in set(map(weight_name, product.mixed_parameters)) - vectors:
            reasons[name] = reasons.get(name) or _multiplied(product)
    for name in vectors & set(reasons):
        reasons[name] = reasons[name] or "a vector has no levels of its own"
    found = Reach(
        weights=reasons,
        modules=frozenset(p.module for p in picture.products)
        | frozenset(call.module for call in picture.calls if call.is_activation),
        made=made,
    )
    return replace(
        found,
        first=frozenset(n for p in picture.products if p.is_first for n in found.names(p)),
        last=frozenset(n for p in picture.products if p.is_last for n in found.names(p)),
    )


def _obstacles(
    picture: Picture, product: Product, made: Mapping[str, Made]
) -> Iterator[tuple[str, str]]:
    """The parameters that enter a product, each with what stands between it and a grid."""
    weight = product.weight
    parts = {name for own in made.values() for name in own.parameters}
    for value in product.inputs:
        for name in value.parameters - parts:
            yield weight_name(name), f"{product.function} takes it for an input"
    if weight is None:
        return
    for name in weight.parameters - parts:
        yield weight_name(name), weight.through and f"{weight.through} makes the weight of it"
    if weight.kind != "weight" and (weight.is_of_image or weight.after):
        for name in _makers(picture, product):
            yield name, _multiplied(product)


def _multiplied(product: Product) -> str:
    where = f"{product.function} in {product.module or 'the network'}"
    return f"{where} multiplies by what is made of it"


def _made(picture: Picture) -> dict[str, Made]:
    """The weights that layers make of parameters which multiply nothing of the image elsewhere."""
    found: dict[str, Made] = {}
    for product in picture.products:
        weight, call = product.weight, product.call
        if weight is None or call is None or weight.kind != "weight" or not weight.through:
            continue
        others = [p for p in picture.products if p is not product and _shares(p, weight.parameters)]
        if any(value.is_of_image for other in others for value in other.inputs):
            continue  # one parameter, two weights
        owner = picture.owner(call)
        if (
            product.place == 0
            and product.module == owner
            and product.function.startswith(("conv", "linear"))
        ):
            found[product.module] = Made(
                parameters=weight.parameters,
                own=weight.parameters - picture.mixed,
                through=weight.through,
                owner=owner,
                site=site_key(call.function, picture.count(call, owner), 1),
                shape=product.weight_shape,
                has_zeros=product.has_zero_weights,
            )
    return found


def _shares(product: Product, parameters: frozenset[str]) -> bool:
    return product.weight is not None and bool(product.weight.parameters & parameters)


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


def keep_reach(model: nn.Module, reach: Reach) -> None:
    """Let a network remember what an example has shown of it."""
    setattr(model, _REACH, reach)


def known_reach(model: nn.Module) -> Reach | None:
    """What an example has shown of this network when it was prepared, None if there was none."""
    return cast(Reach | None, getattr(model, _REACH, None))


def keep_shape(model: nn.Module, example: Tensor) -> None:
    """Let a network remember the shape of the images that it was prepared with."""
    setattr(model, _EXAMPLE_SHAPE, tuple(example.shape[1:]))


def example_shape(model: nn.Module) -> tuple[int, ...] | None:
    """Shape of one image of the example that a network was prepared with, None if unknown."""
    return getattr(model, _EXAMPLE_SHAPE, None)
