"""Products of a network: every multiplication on an example, and what really enters it.

One forward pass is watched on two levels. The operators that PyTorch dispatches (convolution, mm,
bmm ...) are the products themselves, whatever module or function calls them; from operator to
operator it is followed what each tensor is made of. The torch functions above them (conv2d,
linear, relu ...) and the modules around these say where a product stands.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.nn.utils.parametrize import ParametrizationList
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.hooks import RemovableHandle

from qat.nn.activation import QuantizedActivation
from qat.nn.parametrization import WeightParametrization
from qat.quantize.call_sites import ACTIVATIONS, COUNTED, arguments
from qat.quantize.followed import Entered, Followed, Observed
from qat.quantize.modes import evaluating, training_mode_without_traces
from qat.quantize.operators import KEEPING, operands
from qat.quantize.picture import Call, Picture
from qat.quantize.values import Value, tensors_in
from qat.quantize.weights import LAYER_TYPES, TRANSPOSED_TYPES, foreign_parametrization
from qat.spec.quant import FLOAT_BITS

_BEFORE_WEIGHTS = ("image", "weight", "constant")  # no activation yet
_SET_DATA = torch.Tensor.data.__set__  # type: ignore[attr-defined]


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
    found = Followed(model, len(example), watch)
    # inference tensors do not count their changes, and changes shall not reach the caller's images
    mode = training_mode_without_traces if training else evaluating
    with mode(model), torch.inference_mode(False), torch.no_grad(), ExitStack() as undo:
        if training:
            devices = [example.device] if example.is_cuda else []
            undo.enter_context(torch.random.fork_rng(devices=devices))
        image = example.clone()
        found.marks.put(image, found.fresh(Value("image")))
        # a compiled network, fused attention and cuDNN's cells show no products
        undo.enter_context(torch.compiler.set_stance("force_eager"))
        undo.enter_context(sdpa_kernel(SDPBackend.MATH))
        undo.enter_context(torch.backends.cudnn.flags(enabled=False))
        undo.enter_context(_unfused_modules())
        undo.enter_context(_Modules(model, found))
        undo.enter_context(_Functions(found))
        undo.enter_context(_Operators(found))
        found.read(tensors_in(model(image)))
    return found.picture()


class _Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Carries values from the inputs to the outputs of operators, and finds the products."""

    def __init__(self, found: Followed) -> None:
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
        if value.is_of_image:
            found.mixed |= value.mixed
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

    def __init__(self, found: Followed) -> None:
        super().__init__()
        self._found = found

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        found = self._found
        if func == _SET_DATA:  # made anew by each access
            out = func(*args, **kwargs)
            # the tensor stays the same, what it holds, and where, is another's
            found.marks.move(args[0], found.marks.of(args[1]))
            return out
        found.function = getattr(func, "__name__", "").strip("_")
        if func in COUNTED:
            self._begin(func, args, kwargs)
        try:
            out = func(*args, **kwargs)
        finally:
            call, found.call, found.function = found.call, None, ""
            found.given_operands = []
        if call is not None and call.is_activation:
            given = arguments(call.function, args, kwargs)[0]
            return self._apart(out, call) if out is given else out
        return out

    def _begin(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A counted call begins."""
        found = self._found
        function = COUNTED[func]
        given = [t for t in arguments(function, args, kwargs) if isinstance(t, Tensor)]
        ceiling = _ceiling(function, args, kwargs) if func in ACTIVATIONS else None
        found.function = function
        found.operands = tuple(map(found.marks.of, given))
        found.given_operands = given if len(given) > 1 else []
        found.call = Call(
            number=len(found.calls),
            function=function,
            frames=tuple(found.frames),
            channels=given[0].shape[1] if given and given[0].ndim > 1 else None,
            stays_float=bool(given) and found.operands[0].kind in _BEFORE_WEIGHTS,
            ceiling=ceiling or None,
            is_activation=func in ACTIVATIONS and ceiling is not None,
        )
        found.calls.append(found.call)

    def _apart(self, out: Tensor, call: Call) -> Tensor:
        """What an activation in place gives, told apart from what it has overwritten.

        Whoever reads the argument from now on, and not what is given here, reads what a function
        that gives a new tensor would not have changed.
        """
        given = out.view_as(out)
        for tensor in self._found.marks.sharing(out):
            if tensor is not given:
                self._found.stale[tensor] = call.module
        return given


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


class _Modules:
    """Says which module runs, and what quantizers give, while it is entered."""

    def __init__(self, model: nn.Module, found: Followed) -> None:
        self._found = found
        self._names = {module: name for name, module in model.named_modules()}
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> None:
        self._handles += [
            register_module_forward_pre_hook(self._enter),
            register_module_forward_hook(self._leave, always_call=True),
        ]
        for module in self._names:
            if isinstance(module, (QuantizedActivation, WeightParametrization)):
                handle = module.register_forward_hook(self._mark, with_kwargs=True)
                self._handles.append(handle)
            if isinstance(module, (*LAYER_TYPES, *TRANSPOSED_TYPES)):
                keywords = module.register_forward_pre_hook(self._enter_layer, with_kwargs=True)
                self._handles.append(keywords)

    def __exit__(self, *raised: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _enter(self, module: nn.Module, args: Any) -> None:
        if module in self._names:
            found, name = self._found, self._names[module]
            found.module_calls[name] = found.module_calls.get(name, 0) + 1
            found.frames.append((name, found.module_calls[name]))
            found.entered.append(_entered(args, found))

    def _enter_layer(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        # hooks of all modules are not told of keywords, and ours knows one of them
        is_known = args or "input" in kwargs
        entered = _entered([args, kwargs], self._found) if is_known else Entered(None)
        self._found.entered[-1] = entered

    def _leave(self, module: nn.Module, args: Any, out: Any) -> None:
        if module in self._names:
            self._found.frames.pop()
            entered = self._found.entered.pop()
            entered.reads += sum(tensor is entered.tensor for tensor in tensors_in(out))
            entered.tensor = None
        if isinstance(module, ParametrizationList) and isinstance(out, Tensor):
            _mark_foreign(module, self._found, out)

    def _mark(self, module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        before = self._found.marks.of(next(tensors_in([args, kwargs])))
        value = _quantized(module, self._names[module], before)
        self._found.marks.put(out, self._found.fresh(value))


def _entered(arguments: Any, found: Followed) -> Entered:
    """What enters a module."""
    tensors = list(tensors_in(arguments))
    if len(tensors) != 1:
        return Entered(None)
    return Entered(tensors[0], found.marks.of(tensors[0]).origin)


def _mark_foreign(module: ParametrizationList, found: Followed, weight: Tensor) -> None:
    """A weight that another's parametrization gives is made, also where it holds the same values.

    What a file holds is the weight as it enters; it could not be put back through that function.
    """
    by, value = foreign_parametrization(module), found.marks.of(weight)
    if by and value.kind == "weight" and not value.through:
        found.marks.put(weight, found.fresh(replace(value, through=by)))


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
