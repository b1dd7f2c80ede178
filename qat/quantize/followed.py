"""One forward pass, followed: what its tensors are made of, and the products that it makes."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from qat.quantize.operators import (
    AVERAGING,
    BLANK,
    KEEPING,
    MASKING,
    Factors,
    adds_value,
    is_non_negative,
    kept,
)
from qat.quantize.picture import Call, Picture, Product
from qat.quantize.values import (
    EMPTY,
    ZEROS,
    Kind,
    Marks,
    Value,
    behind,
    is_same_part,
    joined,
    mixed_into,
    tensors_in,
)

# functions whose second operand is the weight, whatever it is made of
_HAS_WEIGHT = ("conv", "linear", "deform")
# functions that begin with zeros for each image, so that what follows depends on their number
_RECURRENT = ("lstm", "gru", "rnn")


class Observed(NamedTuple):
    """A product while it happens.

    Attributes:
        module: the innermost module whose forward makes it.
        weight: what its weight is made of, None for a product of two activations.
        weight_tensor: the weight itself, as the function was given it.
    """

    module: str
    weight: Value | None
    weight_tensor: Tensor | None


@dataclass(slots=True, eq=False)
class Entered:
    """The tensor that enters one call of a module.

    Attributes:
        tensor: None where there is none, or more than one, and once the module has run: nothing
            is kept alive.
        origin: of its values, -1 where there is none.
        reads: how many operators read it while the module runs, and whether the module gives it.
        uses: how many operators of the module itself make something new of its values.
    """

    tensor: Tensor | None
    origin: int = -1
    reads: int = 0
    uses: int = 0


class Followed:
    """One forward pass: what the levels of observation tell each other, and what they found."""

    def __init__(
        self, model: nn.Module, images: int, watch: Callable[[Observed], None] | None
    ) -> None:
        self.marks = Marks()
        for name, parameter in model.named_parameters():
            self.marks.put(parameter, Value("weight", parameters=frozenset([name])))
        self.frames: list[tuple[str, int]] = []  # modules that run, with the number of their call
        self.entered: list[Entered] = []  # what entered them
        self._origins = 0
        self.function = ""  # torch function that runs
        self.call: Call | None = None  # the same, if it is counted
        self.operands: tuple[Value, ...] = ()  # of this call
        self.given_operands: list[Tensor] = []  # the same, as tensors
        self.calls: list[Call] = []
        self.module_calls: dict[str, int] = {}
        self.stale = WeakTensorKeyDictionary()  # overwritten tensor -> by what
        self.overwritten: dict[str, None] = {}
        self.mixed: set[str] = set()  # parameters that enter activations entry by entry
        self._images, self._watch = images, watch
        self._sums: dict[tuple[Any, ...], _Sum] = {}

    @property
    def module(self) -> str:
        """The innermost module that runs."""
        return self.frames[-1][0] if self.frames else ""

    def read(self, tensors: Iterable[Tensor]) -> None:
        """Tensors are read: by an operator, or as the network's answer."""
        for tensor in tensors:
            if tensor in self.stale:
                self.overwritten[self.stale[tensor]] = None
            for entered in self.entered:
                entered.reads += tensor is entered.tensor

    def given(self, operator: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Value:
        """The value of what an operator gives that makes no product."""
        name = self.function or operator.strip("_")
        values = [self.marks.of(tensor) for tensor in tensors_in([args, kwargs])]
        if operator in BLANK:
            return ZEROS if "zeros" in operator else EMPTY
        if operator in KEEPING:
            source = kept(operator, args)
            value = joined(map(self.marks.of, tensors_in(source)), name)
            # what chooses the entries is behind them, too
            value = replace(value, after=behind(values))
            if value.kind == "weight" and operator == "where" and self._sets_zeros(source):
                value = replace(value, masked=True)
            added = adds_value(operator, args)
            if added is None or (added == 0 and value.has_zero and value.kind != "weight"):
                return value
            changed = self._changed([value], name, value.is_positive and added >= 0)
            return replace(changed, masked=value.masked or added == 0)
        if self.entered:
            entered = self.entered[-1]
            entered.uses += any(value.origin == entered.origin for value in values)
        entering = [value.is_positive for value in values]
        is_positive = is_non_negative(operator, (*args, *kwargs.values()), entering)
        if operator in AVERAGING and values and values[0].kind == "quantized":
            return replace(values[0], kind="pooled")
        changed = self._changed(values, name, is_positive)
        if changed.kind == "weight" and operator in MASKING and self._sets_zeros(args):
            return replace(changed, masked=True)
        return changed

    def _sets_zeros(self, operands: Any) -> bool:
        """Whether a constant among what is put together with a weight has zeros."""
        constants = [t for t in tensors_in(operands) if self.marks.of(t).kind == "constant"]
        return any(not t.is_meta and _may_mask(t) for t in constants)

    def _changed(self, values: list[Value], name: str, is_positive: bool) -> Value:
        """New values made of these."""
        kinds = {value.kind for value in values if value.is_of_image}
        if not kinds:
            value = joined(values, name)
            return replace(value, through=name) if value.kind == "weight" else value
        mixed = mixed_into(values)
        kind: Kind = "image" if kinds == {"image"} else "float"
        through = name if kind == "image" else ""
        return Value(
            kind, is_positive=is_positive, through=through, mixed=mixed, after=behind(values)
        )

    def fresh(self, value: Value) -> Value:
        """A value that something new has made."""
        self._origins += 1
        return replace(value, origin=self._origins)

    def product(self, operator: str, factors: Factors, earlier: Sequence[Value]) -> Value:
        """Record a product; the value of what it gives.

        Args:
            operator: that makes it.
            factors: what it multiplies.
            earlier: what else the operator adds up: earlier products of it, a bias.
        """
        a, b, macs = factors
        function = self.function or operator
        first, second = self.marks.of(a), self.marks.of(b)
        is_swapped = first.kind == "weight" and second.is_of_image
        if is_swapped:
            a, b, first, second = b, a, second, first
        is_weight = second.kind == "weight" or function.startswith(_HAS_WEIGHT)
        if function.startswith(_HAS_WEIGHT) and self.given_operands:
            b = self.given_operands[0 if is_swapped else 1]  # and not as the operator has it
        if self._watch is not None:
            own = (second, b) if is_weight else (None, None)
            self._watch(Observed(self.module, *own))
        before = [first, second, *earlier]
        of_image = any(v.is_of_image for v in before) or function.startswith(_RECURRENT)
        total = self._sum(function, first, second, is_weight=is_weight)
        if is_weight:
            total.weight_shape = tuple(b.shape)
            total.has_zero_weights = second.masked or (bool(second.through) and _has_holes(b))
        total.add(macs, behind(before), of_image=of_image)
        if of_image:
            self.mixed |= mixed_into(earlier)  # a bias
        # what is made of parameters alone is a constant from now on, and still made of them
        parts = frozenset[str]() if of_image else mixed_into(before)
        kind: Kind = "float" if of_image else "constant"
        if is_weight and second.kind == "weight":
            own_number = frozenset([total.number])
            return Value(kind, mixed=parts, after=own_number | behind(earlier))
        # a fixed filter, as of a cosine transform, leaves the image what it is
        is_filter = first.kind == "image" and second.kind == "constant"
        return Value("image" if is_filter else kind, mixed=parts, after=behind(before))

    def _sum(self, function: str, first: Value, second: Value, *, is_weight: bool) -> "_Sum":
        """The product of these in this place; the steps of a recurrent layer make one."""
        weight, inputs = (second, (first,)) if is_weight else (None, (first, second))
        where = self.module if self.call is None else self.call.number
        alike = [None if v is None else replace(v, after=frozenset()) for v in (weight, *inputs)]
        return self._sums.setdefault(
            (where, function, *alike),
            _Sum(
                number=len(self._sums),
                module=self.module,
                function=function,
                weight=weight,
                inputs=inputs,
                call=self.call,
                place=self._place(),
                entered=self.entered[-1] if self.entered else None,
                is_own_input=bool(self.entered) and self.entered[-1].origin == first.origin,
            ),
        )

    def products(self, operator: str, factors: Sequence[Factors], args: Sequence[Any]) -> Value:
        """Record the products of one operator; the value of what it gives."""
        made: list[Value] = []
        for pair in factors:
            others = [t for t in tensors_in(args) if t is not pair.first and t is not pair.second]
            made.append(self.product(operator, pair, [*made, *map(self.marks.of, others)]))
        return made[-1]

    def write(self, tensor: Tensor, value: Value, operator: str) -> None:
        """A tensor holds new values, and so does, all or in part, what lies in the same memory."""
        for other in self.marks.sharing(tensor):
            is_same = is_same_part(other, tensor)
            new = value if is_same else joined([self.marks.of(other), value], operator)
            self.marks.put(other, self.fresh(new))
        self.marks.put(tensor, value)

    def _place(self) -> int | None:
        """Which operand of the running call is the input, the one that is no weight."""
        if self.call is None or len(self.operands) < 2:
            return None
        first, second = self.operands[:2]
        if self.call.function.startswith(_HAS_WEIGHT):
            return int(first.kind == "weight" and second.is_of_image)
        places = [i for i, value in enumerate(self.operands) if value.kind != "weight"]
        return places[0] if len(places) == 1 else None

    def picture(self) -> Picture:
        """All that was found, once the pass is over."""
        sums = self._sums.values()
        inner = {n for s in sums if s.has_weight for n in s.after if n != s.number}
        return Picture(
            products=tuple(s.product(self._images, inner) for s in sums),
            calls=tuple(self.calls),
            module_calls=dict(self.module_calls),
            overwritten=tuple(self.overwritten),
            mixed=frozenset(self.mixed),
        )


@dataclass(slots=True)
class _Sum:
    """A product that grows with its repetitions."""

    number: int
    module: str
    function: str
    weight: Value | None
    inputs: tuple[Value, ...]
    call: Call | None
    place: int | None
    entered: "Entered | None"
    is_own_input: bool
    after: frozenset[int] = frozenset()
    of_image: int = 0  # multiply-accumulates of all images together
    constant: int = 0  # those that do not depend on the images
    weight_shape: tuple[int, ...] = ()
    has_zero_weights: bool = False

    @property
    def has_weight(self) -> bool:
        return self.weight is not None and self.weight.kind == "weight"

    def add(self, macs: int, after: frozenset[int], *, of_image: bool) -> None:
        self.after |= after
        if of_image:
            self.of_image += macs
        else:
            self.constant += macs

    def product(self, images: int, inner: Collection[int]) -> Product:
        return Product(
            number=self.number,
            module=self.module,
            function=self.function,
            weight=self.weight,
            inputs=self.inputs,
            place=self.place,
            is_own_input=self.is_own_input
            and self.entered is not None
            and self.entered.reads == self.entered.uses == 1,
            macs=self.of_image // images + self.constant,
            call=self.call,
            is_first=not self.after - {self.number} and any(v.is_of_image for v in self.inputs),
            is_last=self.number not in inner,
            weight_shape=self.weight_shape,
            has_zero_weights=self.has_zero_weights,
        )


def _may_mask(constant: Tensor) -> bool:
    """Whether a constant factor sets entries to 0, or is there to do so."""
    is_zero = constant == 0
    return bool(is_zero.any()) or (constant.numel() > 1 and bool((is_zero | (constant == 1)).all()))


def _has_holes(weight: Tensor) -> bool:
    """Whether some row of a weight holds zeros and others; one that is all 0 has just no scale."""
    if weight.is_meta or weight.ndim == 0:
        return False
    rows = (weight == 0).flatten(1) if weight.ndim > 1 else (weight == 0)[None]
    return bool((rows.any(1) & ~rows.all(1)).any())
