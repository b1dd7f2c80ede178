"""Products of a network: every multiplication on an example, and what really enters it.

One forward pass is watched on two levels. The operators that PyTorch dispatches (convolution, mm,
bmm ...) are the products themselves, whatever module or function calls them; from operator to
operator it is followed what each tensor is made of. The torch functions above them (conv2d,
linear, relu ...) and the modules around these say where a product stands.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdRef, WeakTensorKeyDictionary

from qat.nn.activation import QuantizedActivation
from qat.nn.parametrization import WeightParametrization
from qat.quantize.call_sites import ACTIVATIONS, COUNTED, arguments
from qat.quantize.modes import evaluating
from qat.quantize.operators import (
    AVERAGING,
    KEEPING,
    Factors,
    is_non_negative,
    kept,
    operands,
    pads_with,
)
from qat.spec.quant import FLOAT_BITS

Kind = Literal["constant", "weight", "image", "quantized", "pooled", "float"]

# functions whose second operand is the weight, whatever it is made of
_HAS_WEIGHT = ("conv", "linear", "deform")
_RECURRENT = ("lstm", "gru", "rnn")


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
        through: of a weight, what was made of the parameters, "" if it holds entries of one
            parameter as they are.
        after: numbers of the products with a weight that are behind it, the nearest ones.
    """

    kind: Kind
    bits: int = FLOAT_BITS
    name: str = ""
    has_zero: bool = True
    signed: bool = True
    is_positive: bool = False
    parameters: frozenset[str] = frozenset()
    through: str = ""
    after: frozenset[int] = frozenset()

    @property
    def is_of_image(self) -> bool:
        """Whether the image is behind it."""
        return self.kind not in ("constant", "weight")


CONSTANT = Value("constant")


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call of a counted torch function.

    Attributes:
        number: position among all counted calls of the forward pass.
        function: its name, see `call_sites.COUNTED`.
        frames: the modules whose forward runs, outermost first, each with the number of its call.
        channels: length of the second axis of its first operand.
        ceiling: of a ReLU, its upper end; None if it has none.
        is_activation: whether it is a ReLU, up to a ceiling.
    """

    number: int
    function: str
    frames: tuple[tuple[str, int], ...]
    channels: int | None = None
    ceiling: float | None = None
    is_activation: bool = False

    @property
    def module(self) -> str:
        """The innermost module."""
        return self.frames[-1][0] if self.frames else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """One multiplication of the network; what is repeated in one place is one product.

    Attributes:
        number: by which `Value.after` names it.
        module: the innermost module whose forward makes it.
        function: torch function that makes it, or the operator.
        weight: the operand that is made of parameters, or takes a weight's place in the function;
            None for a product of two activations.
        inputs: the other operand, or both.
        place: which argument of the function the input is; None if it is none of its own.
        macs: multiply-accumulates per image.
        call: of the function; None if it is no counted one.
        is_first: whether the image enters it, and no product with a weight is before it.
        is_last: whether no further product with a weight is behind it.
        after: numbers of the nearest products with a weight that its operands are made of.
    """

    number: int
    module: str
    function: str
    weight: Value | None
    inputs: tuple[Value, ...]
    place: int | None
    macs: int
    call: Call | None
    is_first: bool
    is_last: bool
    after: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """What one forward pass has shown.

    Attributes:
        products: in the order of execution.
        calls: counted calls, in the order of execution.
        module_calls: dotted name -> how often the module was called.
        overwritten: modules and functions that changed a tensor in place which was read again
            afterwards, other than through what they gave.
    """

    products: tuple[Product, ...]
    calls: tuple[Call, ...]
    module_calls: Mapping[str, int]
    overwritten: tuple[str, ...]

    def owner(self, call: Call) -> str:
        """The innermost module around a call that runs once: it counts the call's sites."""
        names = [name for name, _ in call.frames if self.module_calls[name] == 1]
        return names[-1] if names else ""

    def count(self, call: Call, owner: str, *, without: Collection[str] = ()) -> int:
        """How many calls of the same function `owner` leads to before this one.

        Args:
            call: of the picture.
            owner: a module around it that runs once.
            without: modules whose calls do not count.
        """
        return sum(
            earlier.function == call.function
            and any(name == owner for name, _ in earlier.frames)
            and not any(name in without for name, _ in earlier.frames)
            for earlier in self.calls[: call.number]
        )


class Observed(NamedTuple):
    """A product while it happens, with the tensors that enter it."""

    module: str
    function: str
    weight: Value | None
    weight_tensor: Tensor | None
    inputs: tuple[Value, ...]
    input_tensors: tuple[Tensor, ...]


def trace(
    model: nn.Module, example: Tensor, *, watch: Callable[[Observed], None] | None = None
) -> Picture:
    """Run `model` once in eval mode and follow what enters each product.

    Attention is computed by plain products, and what a compiled network does is done eagerly.
    Counted are convolutions, transposed ones too, matrix products, those of einsum, attention and
    recurrent cells among them; products element by element and Fourier transforms are not.

    Args:
        model: any network; its mode, parameters and buffers are left as they are.
        example: input images (N, C, H, W).
        watch: is told of each product while it happens.
    """
    found = _Followed(model, len(example), watch)
    # inference tensors do not count their changes, and changes shall not reach the caller's images
    with evaluating(model), torch.inference_mode(False), torch.no_grad(), ExitStack() as undo:
        image = example.clone()
        found.marks.put(image, Value("image"))
        # a compiled network, fused attention and cuDNN's cells show no products
        undo.enter_context(torch.compiler.set_stance("force_eager"))
        undo.enter_context(sdpa_kernel(SDPBackend.MATH))
        undo.enter_context(torch.backends.cudnn.flags(enabled=False))
        undo.enter_context(_unfused_modules())
        undo.enter_context(_followed(model, found))
        undo.enter_context(_Functions(found))
        undo.enter_context(_Operators(found))
        model(image)
    return found.picture()


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


class _Marks:
    """The values of the tensors that are alive; it keeps none of them alive."""

    def __init__(self) -> None:
        self._values = WeakTensorKeyDictionary()
        self._in_memory: dict[int, list[WeakIdRef]] = {}

    def put(self, tensor: Tensor, value: Value) -> None:
        if tensor not in self._values:
            # of what lay in this place before, and is no more, nothing is kept
            place = tensor.untyped_storage()._cdata
            alive = [ref for ref in self._in_memory.get(place, ()) if ref() is not None]
            self._in_memory[place] = [*alive, WeakIdRef(tensor)]
        self._values[tensor] = value

    def of(self, tensor: Tensor) -> Value:
        found: Value | None = self._values.get(tensor)  # type: ignore[no-untyped-call]
        if found is None:  # made behind the operators' back, as `.data` is
            found = next((self._values[other] for other in self.sharing(tensor)), CONSTANT)
        return found

    def sharing(self, tensor: Tensor) -> list[Tensor]:
        """The tensors with a value that lie in the same memory."""
        refs = self._in_memory.get(tensor.untyped_storage()._cdata, ())
        return [other for ref in refs if (other := ref()) is not None]


def _joined(values: Iterable[Value], operator: str) -> Value:
    """What is made of several values together, entry by entry, or by any other operator."""
    values = tuple(values)
    after = frozenset[int]().union(*(value.after for value in values))
    alike = {replace(value, after=frozenset()) for value in values}
    if len(alike) == 1:
        return replace(values[0], after=after)
    of_image = {value.kind for value in values if value.is_of_image}
    if of_image:
        return Value("image" if of_image == {"image"} else "float", after=after)
    parameters = frozenset[str]().union(*(value.parameters for value in values))
    if not parameters:
        return Value("constant", after=after)
    return Value("weight", parameters=parameters, through=operator, after=after)


class _Followed:
    """One forward pass: what the levels of observation tell each other, and what they found."""

    def __init__(
        self, model: nn.Module, images: int, watch: Callable[[Observed], None] | None
    ) -> None:
        self.marks = _Marks()
        for name, parameter in model.named_parameters():
            self.marks.put(parameter, Value("weight", parameters=frozenset([name])))
        self.frames: list[tuple[str, int]] = []  # modules that run, with the number of their call
        self.function = ""  # torch function that runs
        self.call: Call | None = None  # the same, if it is counted
        self.operands: tuple[Value, ...] = ()  # of this call
        self.calls: list[Call] = []
        self.module_calls: dict[str, int] = {}
        self.stale = WeakTensorKeyDictionary()  # overwritten tensor -> by what
        self.overwritten: dict[str, None] = {}
        self._images, self._watch = images, watch
        self._sums: dict[tuple[Any, ...], _Sum] = {}

    @property
    def module(self) -> str:
        return self.frames[-1][0] if self.frames else ""

    def given(self, operator: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Value:
        """The value of what an operator gives that makes no product."""
        name = self.function or operator.strip("_")
        if operator in KEEPING:
            value = _joined(map(self.marks.of, tensors_in(kept(operator, args))), name)
            padding = pads_with(operator, args)
            if padding is None or (padding == 0 and value.has_zero):
                return value
            return self._changed([value], name, value.is_positive and padding >= 0)
        values = [self.marks.of(tensor) for tensor in tensors_in([args, kwargs])]
        entering = [value.is_positive for value in values]
        is_positive = is_non_negative(operator, (*args, *kwargs.values()), entering)
        if operator in AVERAGING and values and values[0].kind == "quantized":
            return replace(values[0], kind="pooled")
        return self._changed(values, name, is_positive)

    def _changed(self, values: list[Value], name: str, is_positive: bool) -> Value:
        """New values made of these."""
        if len({value.kind for value in values if value.is_of_image}) == 0:
            value = _joined(values, name)
            return replace(value, through=name) if value.kind == "weight" else value
        after = frozenset[int]().union(*(value.after for value in values))
        kinds = {value.kind for value in values if value.is_of_image}
        kind: Kind = "image" if kinds == {"image"} else "float"
        return Value(kind, is_positive=is_positive, after=after)

    def product(self, operator: str, factors: Factors, earlier: Value | None) -> Value:
        """Record a product; the value of what it gives.

        Args:
            operator: that makes it.
            factors: what it multiplies.
            earlier: what an earlier product of the same operator gives, None for its first one.
        """
        a, b, macs = factors
        function = self.function or operator
        first, second = self.marks.of(a), self.marks.of(b)
        if function.startswith(_HAS_WEIGHT):
            weight: Value | None = second
        elif second.kind != "weight" and first.kind == "weight":
            a, b, first, second = b, a, second, first
            weight = second
        else:
            weight = second if second.kind == "weight" else None
        inputs = (first,) if weight is not None else (first, second)
        if self._watch is not None:
            tensors = (a,) if weight is not None else (a, b)
            other = b if weight is not None else None
            self._watch(Observed(self.module, function, weight, other, inputs, tensors))
        # what repeats in one place is one product: the steps of a recurrent layer
        where = self.module if self.call is None else self.call.number
        alike = [None if v is None else replace(v, after=frozenset()) for v in (weight, *inputs)]
        total = self._sums.setdefault(
            (where, function, *alike),
            _Sum(len(self._sums), self.module, function, weight, inputs, self.call, self._place()),
        )
        before = [first, second] if earlier is None else [first, second, earlier]
        after = frozenset[int]().union(*(value.after for value in before))
        # a recurrent layer begins with zeros for each image
        of_image = any(v.is_of_image for v in before) or function.startswith(_RECURRENT)
        total.add(macs, after, of_image=of_image)
        if weight is not None and weight.kind == "weight":
            return Value("float" if of_image else "constant", after=frozenset([total.number]))
        # a fixed filter, as of a cosine transform, leaves the image what it is
        is_filter = first.kind == "image" and second.kind == "constant"
        kind: Kind = "image" if is_filter else "float" if of_image else "constant"
        return Value(kind, after=after)

    def _place(self) -> int | None:
        """Which operand of the running call is the input, the one that is no weight."""
        if self.call is None or len(self.operands) < 2:
            return None
        if self.call.function.startswith(_HAS_WEIGHT):
            return 0
        places = [i for i, value in enumerate(self.operands) if value.kind != "weight"]
        return places[0] if len(places) == 1 else None

    def picture(self) -> Picture:
        """All that was found, once the pass is over."""
        inner = frozenset[int]().union(
            *(s.after - {s.number} for s in self._sums.values() if s.has_weight)
        )
        return Picture(
            products=tuple(s.product(self._images, inner) for s in self._sums.values()),
            calls=tuple(self.calls),
            module_calls=dict(self.module_calls),
            overwritten=tuple(self.overwritten),
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
    after: frozenset[int] = frozenset()
    of_image: int = 0  # multiply-accumulates of all images together
    constant: int = 0  # those that do not depend on the images

    @property
    def has_weight(self) -> bool:
        return self.weight is not None and self.weight.kind == "weight"

    def add(self, macs: int, after: frozenset[int], *, of_image: bool) -> None:
        self.after |= after
        if of_image:
            self.of_image += macs
        else:
            self.constant += macs

    def product(self, images: int, inner: frozenset[int]) -> Product:
        return Product(
            number=self.number,
            module=self.module,
            function=self.function,
            weight=self.weight,
            inputs=self.inputs,
            place=self.place,
            macs=self.of_image // images + self.constant,
            call=self.call,
            is_first=not self.after - {self.number} and any(v.is_of_image for v in self.inputs),
            is_last=self.number not in inner,
            after=self.after,
        )


class _Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Carries values from the inputs to the outputs of operators, and finds the products."""

    def __init__(self, found: _Followed) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        found, marks = self._found, self._found.marks
        operator = func.overloadpacket.__name__
        for tensor in tensors_in([args, kwargs]):
            if tensor in found.stale:
                found.overwritten[found.stale[tensor]] = None
        value = found.given(operator, args, kwargs)
        out = func(*args, **kwargs)
        earlier = None
        for factors in operands(operator, args, out):
            value = earlier = found.product(operator, factors, earlier)
        changed = list(_written(func, args, kwargs))
        for tensor in tensors_in(out):
            if not any(tensor is other for other in changed):
                marks.put(tensor, value)
        for tensor in changed:
            # what lies in the same memory holds new entries too, all of them or some
            for other in marks.sharing(tensor):
                is_whole = other.numel() == tensor.numel()
                marks.put(other, value if is_whole else _joined([marks.of(other), value], operator))
            marks.put(tensor, value)
        return out


def _written(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[Tensor]:
    """The arguments that an operator changes in place."""
    for index, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            is_given = index < len(args)
            yield from tensors_in(args[index] if is_given else kwargs.get(argument.name))


class _Functions(TorchFunctionMode):
    """Says which torch function the operators belong to, and counts the calls of some."""

    def __init__(self, found: _Followed) -> None:
        super().__init__()
        self._found = found

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        found = self._found
        found.function = getattr(func, "__name__", "").strip("_")
        counted = COUNTED.get(func)
        if counted is not None:
            found.function = counted
            given = [t for t in arguments(counted, args, kwargs) if isinstance(t, Tensor)]
            found.operands = tuple(map(found.marks.of, given))
            ceiling = _ceiling(counted, args, kwargs) if func in ACTIVATIONS else None
            found.call = Call(
                number=len(found.calls),
                function=counted,
                frames=tuple(found.frames),
                channels=given[0].shape[1] if given and given[0].ndim > 1 else None,
                ceiling=ceiling or None,
                is_activation=func in ACTIVATIONS and ceiling is not None,
            )
            found.calls.append(found.call)
        try:
            out = func(*args, **kwargs)
        finally:
            call, found.call, found.function = found.call, None, ""
        if call is not None and call.is_activation and any(out is tensor for tensor in args[:1]):
            # whoever reads the argument from now on, and not what is given here, reads what
            # a function that gives a new tensor would not have changed
            given = out.view_as(out)
            for tensor in found.marks.sharing(out):
                if tensor is not given:
                    found.stale[tensor] = call.module
            return given
        return out


def _ceiling(function: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> float | None:
    """Upper end of a ReLU, 0 if it has none; None for a function that is no ReLU."""
    if function != "hardtanh":
        return {"relu": 0.0, "relu6": 6.0}[function]
    low = args[1] if len(args) > 1 else kwargs.get("min_val", -1.0)
    high = args[2] if len(args) > 2 else kwargs.get("max_val", 1.0)
    return float(high) if low == 0 and high > 0 else None


@contextmanager
def _unfused_modules() -> Iterator[None]:
    """A block in which no module of attention does its work by one operator."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def _followed(model: nn.Module, found: _Followed) -> Iterator[None]:
    """A block in which it is known which module runs, and what quantizers give."""
    names = {module: name for name, module in model.named_modules()}

    def enter(module: nn.Module, args: Any) -> None:
        if module in names:
            count = found.module_calls.get(names[module], 0) + 1
            found.module_calls[names[module]] = count
            found.frames.append((names[module], count))

    def leave(module: nn.Module, args: Any, out: Any) -> None:
        if module in names:
            found.frames.pop()

    def mark(module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        before = found.marks.of(next(tensors_in([args, kwargs])))
        found.marks.put(out, _quantized(module, names[module], before))

    quantizers = [m for m in names if isinstance(m, (QuantizedActivation, WeightParametrization))]
    handles = (
        register_module_forward_pre_hook(enter),
        register_module_forward_hook(leave, always_call=True),
        *(module.register_forward_hook(mark, with_kwargs=True) for module in quantizers),
    )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _quantized(module: nn.Module, name: str, before: Value) -> Value:
    """What a quantizer gives."""
    if isinstance(module, WeightParametrization):
        return replace(before, bits=module.bits if module.enabled else FLOAT_BITS, name=name)
    assert isinstance(module, QuantizedActivation)
    is_positive = module.has_zero and not module.signed
    return Value(
        "quantized",
        bits=module.bits,
        name=name,
        has_zero=module.has_zero,
        signed=not is_positive,
        is_positive=is_positive,
        after=before.after,
    )
