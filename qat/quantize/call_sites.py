"""Call sites: quantizers behind function calls, one for each call of a module's forward.

A ReLU module that is called twice, or a `F.relu` that is no module at all, has no place of its own
among the modules. Its place is the call: the n-th of `relu` while the forward of one module, the
owner, runs. The hooks of the owner count the calls by a torch function mode; the quantizer is kept
by the module that makes the call, in a child `call_sites`. The modules themselves stay what they
are, so networks are copied, pickled, compiled and loaded as before.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from qat.errors import SpecError

CALL_SITES = "call_sites"
# of an owner: its counters that run, where the quantizers of its calls are, by key, and its name
_RUNNING, _PATHS, _NAME = "_qat_calls", "_qat_call_sites", "_qat_owner"
# of a module that keeps quantizers: names of their owners, and whether one ran at its last forward
_COUNTED_BY, _WAS_COUNTED = "_qat_counted_by", "_qat_was_counted"

# float activations with a staircase of their own: max(x, 0), up to a ceiling
ACTIVATIONS: dict[Callable[..., Any], str] = {
    **dict.fromkeys((F.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_), "relu"),
    F.relu6: "relu6",
    **dict.fromkeys((F.hardtanh, F.hardtanh_), "hardtanh"),
}
PRODUCTS: dict[Callable[..., Any], str] = {
    **{getattr(F, name): name for name in ("conv1d", "conv2d", "conv3d", "linear")},
    **{f: f"conv_transpose{n}d" for n, f in enumerate(
        (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d), start=1)},
    **dict.fromkeys(
        (torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.linalg.matmul), "matmul"
    ),
    **dict.fromkeys((torch.mm, Tensor.mm), "mm"),
    **dict.fromkeys((torch.bmm, Tensor.bmm), "bmm"),
}  # fmt: skip
COUNTED = {**ACTIVATIONS, **PRODUCTS}
# names of their first two arguments, which may be given by keyword
_ARGUMENTS = {
    **dict.fromkeys(PRODUCTS.values(), ("input", "weight")),
    **dict.fromkeys(ACTIVATIONS.values(), ("input",)),
    **dict.fromkeys(("matmul",), ("input", "other")),
    **dict.fromkeys(("mm", "bmm"), ("input", "mat2")),
}


def site_key(function: str, count: int, place: int = 0) -> str:
    """Name of a site: function, which of its calls, and which argument if not the first."""
    return f"{function}_{count}" + (f"_{place}" if place else "")


class CallSites(nn.ModuleDict):
    """The quantizers of calls that one module's forward makes, by key.

    Called it is the identity, for owners that run through all of their children.
    """

    def forward(self, x: Any) -> Any:
        """`x` itself."""
        return x


def add_site(model: nn.Module, owner: str, holder: str, key: str, quantizer: nn.Module) -> None:
    """Put a quantizer behind one function call of an owner's forward.

    Args:
        model: network.
        owner: name of the module whose forward leads to the call; calls are counted from the
            beginning of each forward of it.
        holder: name of the module that makes the call itself, which keeps the quantizer.
        key: of the call, see `site_key`.
        quantizer: instead of an activation function; before a product, for one of its operands.

    Raises:
        SpecError: the holder has a child of this name of its own.
    """
    counts = model.get_submodule(owner)
    inside = not owner or holder == owner or holder.startswith(f"{owner}.")
    place = holder if inside else owner
    keeper = model.get_submodule(place)
    sites = keeper._modules.get(CALL_SITES)
    if sites is None:
        sites = CallSites()
        keeper.add_module(CALL_SITES, sites)
    if not isinstance(sites, CallSites):
        raise SpecError(
            f"{place or 'the network'} has a child {CALL_SITES} of its own, which is where its "
            "quantizers go; call it otherwise"
        )
    sites[key] = quantizer
    paths: dict[str, str] | None = counts.__dict__.get(_PATHS)
    if paths is None:
        paths = counts.__dict__[_PATHS] = {}
        counts.__dict__[_NAME] = owner
        counts.register_forward_pre_hook(_enter)
        counts.register_forward_hook(_leave, always_call=True)
    if keeper is not counts:
        if _COUNTED_BY not in keeper.__dict__:
            keeper.register_forward_pre_hook(_check_counted)
        keeper.__dict__.setdefault(_COUNTED_BY, set()).add(owner)
    way = place[len(owner) :].lstrip(".")
    paths[key] = f"{way}.{CALL_SITES}.{key}".lstrip(".")


def owners(model: nn.Module) -> list[str]:
    """Names of the modules whose calls are counted."""
    return [name for name, module in model.named_modules() if _PATHS in module.__dict__]


def site(model: nn.Module, owner: str, key: str) -> nn.Module:
    """The quantizer of a call; KeyError if it has none."""
    counts = model.get_submodule(owner)
    return counts.get_submodule(counts.__dict__[_PATHS][key])


@contextmanager
def counted(owner: nn.Module) -> Iterator[None]:
    """A block in which the calls of `owner`'s forward are made without calling the module."""
    if _PATHS not in owner.__dict__:
        yield
        return
    _enter(owner, ())
    try:
        yield
    finally:
        _leave(owner, (), None)


def arguments(function: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """The operands of a counted function, however they are given."""
    names = _ARGUMENTS[function]
    given = args[: len(names)]
    return [*given, *(kwargs[name] for name in names[len(given) :] if name in kwargs)]


def with_argument(
    function: str, args: tuple[Any, ...], kwargs: dict[str, Any], place: int, value: Any
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments with another operand at `place`."""
    if place < len(args):
        return (*args[:place], value, *args[place + 1 :]), kwargs
    return args, {**kwargs, _ARGUMENTS[function][place]: value}


class _Calls(TorchFunctionMode):
    """Counts the calls of one forward of an owner, and lets the quantizers of its sites act.

    Owners stand inside each other. Each counts every call that its forward leads to, whether or
    not it is an inner owner's; the innermost one, which sees a call first, counts for all.
    """

    def __init__(self, owner: nn.Module, outer: "_Calls | None") -> None:
        super().__init__()
        self._owner, self._outer = owner, outer
        self._paths: dict[str, str] = owner.__dict__[_PATHS]
        self.name: str = owner.__dict__[_NAME]
        self._counts: dict[str, int] = {}
        self._is_counted_inside = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        function = None if self._is_counted_inside else COUNTED.get(func)
        if function is None:
            return func(*args, **kwargs)
        found = self._count(function)
        self._silence(True)
        try:
            if func in ACTIVATIONS and found[0] is not None:
                return found[0](arguments(function, args, kwargs)[0])
            for place, quantizer in enumerate(found):
                if quantizer is not None:
                    operand = quantizer(arguments(function, args, kwargs)[place])
                    args, kwargs = with_argument(function, args, kwargs, place, operand)
            return func(*args, **kwargs)
        finally:
            self._silence(False)

    def _count(self, function: str) -> list[nn.Module | None]:
        """The quantizers of this call, of its first and second operand."""
        count = self._counts.get(function, 0)
        self._counts[function] = count + 1
        found: list[nn.Module | None] = (
            [None, None] if self._outer is None else self._outer._count(function)
        )
        for place in (0, 1):
            key = site_key(function, count, place)
            if key in self._paths:
                found[place] = self._owner.get_submodule(self._paths[key])
        return found

    def _silence(self, is_counted_inside: bool) -> None:
        """What the outer owners see of this call from now on is counted already."""
        if self._outer is not None:
            self._outer._is_counted_inside = is_counted_inside
            self._outer._silence(is_counted_inside)


def _running() -> list[_Calls]:
    """The counters that run, the innermost last."""
    depth = torch._C._len_torch_function_stack()
    modes = [torch._C._get_function_stack_at(index) for index in range(depth)]
    return [mode for mode in modes if isinstance(mode, _Calls)]


def _check_counted(module: nn.Module, args: tuple[Any, ...]) -> None:
    """Forward pre-hook of a module that keeps quantizers of calls which an owner around it counts.

    Checkpointing may run it again without its owner, silently without its quantizers.
    """
    if torch.compiler.is_compiling():
        return
    owners = module.__dict__[_COUNTED_BY]
    is_counted = any(calls.name in owners for calls in _running())
    if torch._C._current_graph_task_id() == -1:  # no backward pass
        module.__dict__[_WAS_COUNTED] = is_counted
    elif module.__dict__.get(_WAS_COUNTED) and not is_counted:
        name = min(owners)
        raise SpecError(
            f"checkpointing runs a part of {name or 'the network'} again without it, but it is "
            f"{name or 'the network'} that counts the calls of that part, which runs several "
            "times; checkpoint it whole, or give each use of the part a module of its own"
        )


def _enter(module: nn.Module, args: tuple[Any, ...]) -> None:
    """Forward pre-hook of an owner."""
    running = _running()
    calls = _Calls(module, running[-1] if running else None)
    # torch.compile follows what can be reached from the network
    module.__dict__.setdefault(_RUNNING, []).append(calls)
    calls.__enter__()  # type: ignore[no-untyped-call]


def _leave(module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
    """Forward hook of an owner, also where its forward raised."""
    module.__dict__[_RUNNING].pop()
    # the stack is each thread's own, and what _enter has put on it is on top again
    torch._C._pop_torch_function_stack()
