"""Values of a forward pass: what each tensor is made of, while it lives."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import Tensor
from torch.utils.weak import WeakIdRef, WeakTensorKeyDictionary

from qat.spec.quant import FLOAT_BITS

Kind = Literal["constant", "weight", "image", "quantized", "pooled", "float"]


@dataclass(frozen=True, slots=True)
class Value:
    """What a tensor is made of.

    Attributes:
        kind: constant (neither parameters nor the image are behind it, or what products of such
            have given), weight (made of parameters alone), image (the network's input, before any
            weight has multiplied it), quantized (levels of one quantizer), pooled (an average of
            such levels), float (anything else).
        bits: of the quantizer behind "quantized", "pooled" and "weight", else 32.
        name: dotted name of that quantizer, else "".
        has_zero: whether 0 is one of its levels.
        signed: whether it has negative levels.
        is_positive: whether no value can be negative.
        parameters: of a weight, the names of the parameters behind it.
        through: of a weight or the image, the last function that changed it, "" if it holds entries
            of one parameter, or pixels, as they are.
        masked: of a weight, whether a constant has set some of its entries to 0.
        mixed: of what the image is behind, the parameters that were mixed into it entry by entry
            since the last product; of a constant, those that products made it of. It makes no two
            values different.
        after: numbers of the products with a weight that are behind it, the nearest ones.
        origin: number of what made the values; views and copies of them have the same. It makes no
            two values different.
    """

    kind: Kind
    bits: int = FLOAT_BITS
    name: str = ""
    has_zero: bool = True
    signed: bool = True
    is_positive: bool = False
    parameters: frozenset[str] = frozenset()
    through: str = ""
    masked: bool = False
    mixed: frozenset[str] = field(default=frozenset(), compare=False)
    after: frozenset[int] = frozenset()
    origin: int = field(default=0, compare=False)

    @property
    def is_of_image(self) -> bool:
        """Whether the image is behind it."""
        return self.kind not in ("constant", "weight")


CONSTANT = Value("constant")


# memory to be written to, and nothing but zeros
EMPTY, ZEROS = Value("constant", name="empty"), Value("constant", name="zeros")


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors in a value, also in lists, tuples and mappings."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, Mapping):
        yield from tensors_in(list(value.values()))


def changes(tensor: Tensor) -> int:
    """How often a tensor, or what shares its memory, was changed in place."""
    return 0 if tensor.is_inference() else tensor._version


class Marks:
    """The values of the tensors that are alive; it keeps none of them alive."""

    def __init__(self) -> None:
        self._values = WeakTensorKeyDictionary()
        self._in_memory: dict[int, list[WeakIdRef]] = {}

    def put(self, tensor: Tensor, value: Value) -> None:
        """Say what a tensor is made of."""
        if tensor not in self._values and (place := _memory(tensor)) is not None:
            refs = self._in_memory.setdefault(place, [])
            if len(refs) & (len(refs) - 1) == 0:  # whenever it has doubled
                # of what lay in this place before, and is no more, nothing is kept
                refs[:] = [ref for ref in refs if ref() is not None]
            refs.append(WeakIdRef(tensor))
        self._values[tensor] = value

    def move(self, tensor: Tensor, value: Value) -> None:
        """Say so of a tensor that lies in another place from now on."""
        self._values.pop(tensor, None)  # type: ignore[no-untyped-call]
        self.put(tensor, value)

    def of(self, tensor: Tensor) -> Value:
        """What a tensor is made of; a constant if nobody said."""
        found: Value | None = self._values.get(tensor)  # type: ignore[no-untyped-call]
        if found is None:  # made behind the operators' back, as `.data` is
            found = next((self._values[other] for other in self.sharing(tensor)), CONSTANT)
        return found

    def sharing(self, tensor: Tensor) -> list[Tensor]:
        """The tensors with a value that lie in the same memory."""
        place = _memory(tensor)
        refs = self._in_memory.get(place, ()) if place is not None else ()
        alive = [other for ref in refs if (other := ref()) is not None]
        return [other for other in alive if _memory(other) == place]


def _memory(tensor: Tensor) -> int | None:
    """The place in memory of a tensor, None for kinds that have none to tell of."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):  # sparse ones, those inside vmap
        return None


def is_same_part(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of one memory are the same entries of it."""
    if one.storage_offset() != other.storage_offset() or one.numel() != other.numel():
        return False
    is_dense = one.is_contiguous() and other.is_contiguous()
    return is_dense or (one.shape == other.shape and one.stride() == other.stride())


def behind(values: Iterable[Value]) -> frozenset[int]:
    """Numbers of the nearest products with a weight that are behind any of these."""
    return frozenset[int]().union(*(value.after for value in values))


def mixed_into(values: Iterable[Value]) -> frozenset[str]:
    """The parameters that are mixed, entry by entry, into what is made of all these."""
    values = tuple(values)
    return _mixed(values).union(*(value.parameters for value in values))


def _mixed(values: Iterable[Value]) -> frozenset[str]:
    return frozenset[str]().union(*(value.mixed for value in values))


def joined(values: Iterable[Value], operator: str) -> Value:
    """What is made of several values together, entry by entry, or by any other operator."""
    every = tuple(values)
    written = tuple(value for value in every if value not in (EMPTY, ZEROS))
    is_padded = 0 < len(written) < len(every) and all(value.has_zero for value in written)
    values = written if is_padded else every
    # zeros are a level of activations, but not of every weight
    masks = is_padded and ZEROS in every and all(value.kind == "weight" for value in written)
    after = behind(every)
    alike = {replace(value, after=frozenset()) for value in values}
    if len(alike) == 1 and not masks:
        return replace(values[0], after=after, mixed=_mixed(values))
    kinds = {value.kind for value in values if value.is_of_image}
    if kinds:
        kind: Kind = "image" if kinds == {"image"} else "float"
        is_positive = all(value.is_positive for value in values)
        through = operator if kind == "image" else ""
        mixed = mixed_into(values)
        return Value(kind, is_positive=is_positive, through=through, mixed=mixed, after=after)
    parameters = frozenset[str]().union(*(value.parameters for value in values))
    if not parameters:
        return Value("constant", mixed=_mixed(values), after=after)
    masked = masks or any(value.masked for value in values)
    return Value("weight", parameters=parameters, through=operator, masked=masked, after=after)
