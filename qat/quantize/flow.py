"""Data flow: what feeds each layer, followed through one forward pass of any network."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from qat.nn.activation import QuantizedActivation
from qat.quantize.modes import evaluating

SourceKind = Literal["image", "quantized", "pooled", "float"]

CONV_TYPES = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
LAYER_TYPES = (*CONV_TYPES, nn.Linear)

# functions whose output holds only values of their input, or zeros
_KEEPING = {
    *("flatten", "view", "reshape", "permute", "transpose", "swapaxes", "squeeze", "unsqueeze"),
    *("unflatten", "contiguous", "clone", "detach", "to", "float", "expand", "repeat", "roll"),
    *("dropout", "dropout1d", "dropout2d", "max_pool1d", "max_pool2d", "max_pool3d", "pad"),
    *("adaptive_max_pool2d", "chunk", "split", "unbind", "__getitem__", "channel_shuffle"),
}
_POOLING = {
    *("avg_pool1d", "avg_pool2d", "avg_pool3d", "mean"),
    *("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d"),
}


@dataclass(frozen=True, slots=True)
class Source:
    """Where a tensor's values come from.

    Attributes:
        kind: image (the network's input), quantized (levels of one quantizer), pooled (an average
            of such levels), float (anything else).
        bits: bits of the quantizer behind "quantized" and "pooled", else 32.
        name: dotted name of that quantizer, else "".
        has_zero: whether 0 is one of its levels.
    """

    kind: SourceKind
    bits: int = 32
    name: str = ""
    has_zero: bool = True


FLOAT = Source("float")


@dataclass(frozen=True, slots=True)
class LayerFlow:
    """One conv or linear layer in one forward pass: what feeds it, and its work per image."""

    source: Source
    macs: int


def trace(model: nn.Module, example: Tensor) -> dict[str, LayerFlow]:
    """Run `model` once in eval mode and record each conv or linear layer that is called.

    Args:
        model: any network; its mode, parameters and buffers are left as they are.
        example: input images (N, C, H, W).

    Returns:
        Dotted layer name -> flow, in the order of execution. A layer called several times has the
        sum of the work, and a float source unless all its inputs have the same one.
    """
    tracer = _Tracer()
    found: dict[str, LayerFlow] = {}
    hooks = _hooks(model, tracer, found, len(example))
    # inference tensors do not count their changes, and changes shall not reach the caller's images
    with evaluating(model), hooks, torch.inference_mode(False), torch.no_grad(), tracer:
        image = example.clone()
        tracer.mark(image, Source("image"))
        with torch.compiler.set_stance("force_eager"):  # a compiled network shows no functions
            model(image)
    return found


def changes(tensor: Tensor) -> int:
    """How often a tensor, or what shares its memory, was changed in place."""
    return 0 if tensor.is_inference() else tensor._version


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors in a value, also in lists, tuples and mappings."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, Mapping):
        yield from tensors_in(list(value.values()))


class _Tracer(TorchFunctionMode):
    """Carries `Source` marks from inputs to outputs of torch functions."""

    def __init__(self) -> None:
        super().__init__()
        # the tensors are kept alive so that an id is never used twice
        self._marks: dict[int, tuple[Tensor, Source]] = {}

    def mark(self, value: Any, source: Source) -> None:
        for tensor in tensors_in(value):
            self._marks[id(tensor)] = (tensor, source)

    def source(self, value: Any) -> Source:
        entry = self._marks.get(id(value))
        return entry[1] if entry else FLOAT

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = [self.source(t) for t in tensors_in(args)]
        counted = [(t, changes(t)) for t in tensors_in([args, kwargs])]
        out = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        source = before[0] if before else FLOAT
        if name in _POOLING and source.kind == "quantized":
            self.mark(out, replace(source, kind="pooled"))
        elif name == "pad" and not _pads_with_a_level(source, kwargs or {}):
            self.mark(out, FLOAT)
        elif name in _KEEPING or (name in ("cat", "concat") and len(set(before)) == 1):
            self.mark(out, source)
        elif isinstance(out, Tensor):
            self.mark(out, FLOAT)
        self._spoil(t for t, count in counted if changes(t) != count)
        return out

    def _spoil(self, changed: Iterable[Tensor]) -> None:
        """After an in-place function: whatever shares the changed storage holds other values."""
        for place in {tensor.untyped_storage().data_ptr() for tensor in changed}:
            for tensor, _ in list(self._marks.values()):
                if tensor.untyped_storage().data_ptr() == place:
                    self.mark(tensor, FLOAT)


@contextmanager
def _hooks(
    model: nn.Module, tracer: _Tracer, found: dict[str, LayerFlow], images: int
) -> Iterator[None]:
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, QuantizedActivation):
            source = Source("quantized", module.bits, name, module.has_zero)
            handles.append(module.register_forward_hook(_marking(tracer, source)))
        elif isinstance(module, LAYER_TYPES):
            hook = _recording(tracer, name, found, images)
            handles.append(module.register_forward_hook(hook, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _pads_with_a_level(source: Source, options: Mapping[str, Any]) -> bool:
    """Whether padding adds no value: zeros where 0 is a level."""
    return source.has_zero and options.get("value") in (None, 0)


def _marking(tracer: _Tracer, source: Source) -> Callable[..., None]:
    def hook(module: nn.Module, args: Any, out: Tensor) -> None:
        tracer.mark(out, source)

    return hook


def _recording(
    tracer: _Tracer, name: str, found: dict[str, LayerFlow], images: int
) -> Callable[..., None]:
    def hook(module: nn.Module, args: Any, kwargs: Any, out: Tensor) -> None:
        source = tracer.source(args[0] if args else kwargs["input"])
        weight: Tensor = module.weight  # type: ignore[assignment]
        # every output position costs one product per weight; axis 0 may hold windows of an image
        macs = out.numel() // weight.shape[0] * weight.numel() // images
        before = found.get(name)
        if before is not None:
            source = source if source == before.source else FLOAT
            macs += before.macs
        found[name] = LayerFlow(source, macs)

    return hook
