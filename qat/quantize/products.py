"""Products of a network: every multiplication on an example, and what really enters it.

One forward pass is watched on two levels. The operators that PyTorch dispatches (convolution, mm,
bmm ...) are the products themselves, whatever module or function calls them; from operator to
operator it is followed what each tensor is made of. The torch functions above them (conv2d,
linear, relu ...) and the modules around these say where a product stands.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from qat.nn.activation import QuantizedActivation
from qat.nn.parametrization import WeightParametrization
from qat.quantize.call_sites import ACTIVATIONS, COUNTED, arguments
from qat.quantize.modes import evaluating, training_mode_without_traces
from qat.quantize.operators import (
    AVERAGING,
    BLANK,
    KEEPING,
    Factors,
    adds_value,
    is_non_negative,
    kept,
    operands,
)
from qat.quantize.picture import Call, Picture, Product
from qat.quantize.values import BLANK_VALUE, Kind, Marks, Value, is_same_part, joined, tensors_in
from qat.spec.quant import FLOAT_BITS

# functions whose second operand is the weight, whatever it is made of
_HAS_WEIGHT = ("conv", "linear", "deform")


_RECURRENT = ("lstm", "gru", "rnn")


class Observed(NamedTuple):
    """A product while it happens, with the tensors that enter it."""

    module: str
    function: str
    weight: Value | None
    weight_tensor: Tensor | None
    inputs: tuple[Value, ...]
    input_tensors: tuple[Tensor, ...]


def trace(
    model: nn.Module,
    example: Tensor,
    *,
    watch: Callable[[Observed], None] | None = None,
    training: bool = False,
) -> Picture:
    """Run `model` once, in eval mode unless said otherwise, and follow what enters each product.

    Attention is computed by plain products, and what a compiled network does is done eagerly.
    Counted are convolutions, transposed ones too, matrix products, those of einsum, attention and
    recurrent cells among them; products element by element and Fourier transforms are not.

    Args:
        model: any network; its mode, parameters and buffers are left as they are.
        example: input images (N, C, H, W).
        watch: is told of each product while it happens.
        training: run it in training mode; its buffers and the random numbers stay as they were.
    """
    found = _Followed(model, len(example), watch)
    # inference tensors do not count their changes, and changes shall not reach the caller's images
    mode = training_mode_without_traces if training else evaluating
    with mode(model), torch.inference_mode(False), torch.no_grad(), ExitStack() as undo:
        if training:
            undo.enter_context(torch.random.fork_rng(devices=[]))
        image = example.clone()
        found.marks.put(image, found.fresh(Value("image")))
        # a compiled network, fused attention and cuDNN's cells show no products
        undo.enter_context(torch.compiler.set_stance("force_eager"))
        undo.enter_context(sdpa_kernel(SDPBackend.MATH))
        undo.enter_context(torch.backends.cudnn.flags(enabled=False))
        undo.enter_context(_unfused_modules())
        undo.enter_context(_followed(model, found))
        undo.enter_context(_Functions(found))
        undo.enter_context(_Operators(found))
        found.read(tensors_in(model(image)))
    return found.picture()


class _Followed:
    """One forward pass: what the levels of observation tell each other, and what they found."""

    def __init__(
        self, model: nn.Module, images: int, watch: Callable[[Observed], None] | None
    ) -> None:
        self.marks = Marks()
        for name, parameter in model.named_parameters():
            self.marks.put(parameter, Value("weight", parameters=frozenset([name])))
        self.frames: list[tuple[str, int]] = []  # modules that run, with the number of their call
        self.entered: list[int] = []  # origins of what entered them
        self._origins = 0
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

    def read(self, tensors: Iterable[Tensor]) -> None:
        """Tensors are read: by an operator, or as the network's answer."""
        for tensor in tensors:
            if tensor in self.stale:
                self.overwritten[self.stale[tensor]] = None

    def given(self, operator: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Value:
        """The value of what an operator gives that makes no product."""
        name = self.function or operator.strip("_")
        values = [self.marks.of(tensor) for tensor in tensors_in([args, kwargs])]
        if operator in BLANK:
            return BLANK_VALUE
        if operator in KEEPING:
            value = joined(map(self.marks.of, tensors_in(kept(operator, args))), name)
            # what chooses the entries is behind them, too
            value = replace(value, after=value.after.union(*(other.after for other in values)))
            added = adds_value(operator, args)
            if added is None or (added == 0 and value.has_zero and value.kind != "weight"):
                return value
            return self._changed([value], name, value.is_positive and added >= 0)
        entering = [value.is_positive for value in values]
        is_positive = is_non_negative(operator, (*args, *kwargs.values()), entering)
        if operator in AVERAGING and values and values[0].kind == "quantized":
            return replace(values[0], kind="pooled")
        return self._changed(values, name, is_positive)

    def _changed(self, values: list[Value], name: str, is_positive: bool) -> Value:
        """New values made of these."""
        if len({value.kind for value in values if value.is_of_image}) == 0:
            value = joined(values, name)
            return replace(value, through=name) if value.kind == "weight" else value
        after = frozenset[int]().union(*(value.after for value in values))
        kinds = {value.kind for value in values if value.is_of_image}
        if kinds == {"image"}:
            return Value("image", is_positive=is_positive, through=name, after=after)
        return Value("float", is_positive=is_positive, after=after)

    def fresh(self, value: Value) -> Value:
        """A value that something new has made."""
        self._origins += 1
        return replace(value, origin=self._origins)

    def product(self, operator: str, factors: Factors, earlier: Iterable[Value]) -> Value:
        """Record a product; the value of what it gives.

        Args:
            operator: that makes it.
            factors: what it multiplies.
            earlier: what else the operator adds up: earlier products of it, a bias.
        """
        a, b, macs = factors
        function = self.function or operator
        first, second = self.marks.of(a), self.marks.of(b)
        if first.kind == "weight" and second.is_of_image:
            a, b, first, second = b, a, second, first
        is_weight = second.kind == "weight" or function.startswith(_HAS_WEIGHT)
        weight = second if is_weight else None
        inputs = (first,) if weight is not None else (first, second)
        if function.startswith("linear") and operator != "linear" and b.ndim == 2:
            b = b.t()  # as it was given to the function
        if self._watch is not None:
            tensors = (a,) if weight is not None else (a, b)
            other = b if weight is not None else None
            self._watch(Observed(self.module, function, weight, other, inputs, tensors))
        # what repeats in one place is one product: the steps of a recurrent layer
        where = self.module if self.call is None else self.call.number
        alike = [None if v is None else replace(v, after=frozenset()) for v in (weight, *inputs)]
        total = self._sums.setdefault(
            (where, function, *alike),
            _Sum(
                number=len(self._sums),
                module=self.module,
                function=function,
                weight=weight,
                inputs=inputs,
                call=self.call,
                place=self._place(),
                is_own_input=bool(self.entered) and self.entered[-1] in (0, first.origin),
            ),
        )
        before = [first, second, *earlier]
        after = frozenset[int]().union(*(value.after for value in before))
        # a recurrent layer begins with zeros for each image
        if weight is not None:
            total.weight_shape = tuple(b.shape)
            is_made = weight.kind == "weight" and bool(weight.through)
            total.has_zero_weights = is_made and not b.is_meta and bool((b == 0).any())
        of_image = any(v.is_of_image for v in before) or function.startswith(_RECURRENT)
        total.add(macs, after, of_image=of_image)
        if weight is not None and weight.kind == "weight":
            added = frozenset[int]().union(*(value.after for value in earlier))
            own = frozenset([total.number])
            return Value("float" if of_image else "constant", after=own | added)
        # a fixed filter, as of a cosine transform, leaves the image what it is
        is_filter = first.kind == "image" and second.kind == "constant"
        kind: Kind = "image" if is_filter else "float" if of_image else "constant"
        return Value(kind, after=after)

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

    def product(self, images: int, inner: frozenset[int]) -> Product:
        return Product(
            number=self.number,
            module=self.module,
            function=self.function,
            weight=self.weight,
            inputs=self.inputs,
            place=self.place,
            is_own_input=self.is_own_input,
            macs=self.of_image // images + self.constant,
            call=self.call,
            is_first=not self.after - {self.number} and any(v.is_of_image for v in self.inputs),
            is_last=self.number not in inner,
            after=self.after,
            weight_shape=self.weight_shape,
            has_zero_weights=self.has_zero_weights,
        )


class _Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Carries values from the inputs to the outputs of operators, and finds the products."""

    def __init__(self, found: _Followed) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        found = self._found
        operator = func.overloadpacket.__name__
        found.read(tensors_in([args, kwargs]))
        value = found.given(operator, args, kwargs)
        out = func(*args, **kwargs)
        products = operands(operator, args, out)
        if products:
            value = found.products(operator, products, args)
        if operator not in KEEPING:
            value = found.fresh(value)
        changed = list(_written(func, args, kwargs))
        for tensor in tensors_in(out):
            if not any(tensor is other for other in changed):
                found.marks.put(tensor, value)
        for tensor in changed:
            found.write(tensor, value, operator)
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
                is_on_image=bool(given) and found.operands[0].kind == "image",
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
            first = next(tensors_in(list(args)), None)
            # what is given by keyword is not told here
            found.entered.append(0 if first is None else found.marks.of(first).origin)

    def leave(module: nn.Module, args: Any, out: Any) -> None:
        if module in names:
            found.frames.pop()
            found.entered.pop()

    def mark(module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        before = found.marks.of(next(tensors_in([args, kwargs])))
        found.marks.put(out, found.fresh(_quantized(module, names[module], before)))

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
