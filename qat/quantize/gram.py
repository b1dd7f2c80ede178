"""Gram matrices of what enters a network's layers, and means of what leaves them."""

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from qat.quantize.modes import evaluating

# Numbers of unfolded images at a time, and of Gram matrices in one pass over the images
_UNFOLDED = 1 << 24
_GRAMS = 1 << 26
_LAYERS = {F.linear: 0, F.conv1d: 1, F.conv2d: 2}
_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")


@dataclass(frozen=True, slots=True)
class _Call:
    """A call of a layer's function: its operands, and how a convolution walks."""

    input: Tensor
    weight: Tensor
    stride: Any = 1
    padding: Any = 0
    dilation: Any = 1
    groups: int = 1


def columns(call_input: Tensor, weight: Tensor, options: Mapping[str, Any]) -> Tensor:
    """Inputs of a layer as rows X (G, M, N) of one matrix product for each group.

    The output of a linear layer, or of a convolution unfolded to one, is X w for each row w of
    the weight reshaped to (G, O / G, N): M counts images and places, N inputs of one output.

    Args:
        call_input: (..., I) of a linear layer, (B, I, L) or (B, I, H, W) of a convolution.
        weight: (O, I), (O, I / G, K) or (O, I / G, K, K').
        options: stride, padding, dilation and groups of the convolution, as torch takes them.
    """
    if weight.ndim == 2:
        return call_input.reshape(1, -1, call_input.shape[-1])
    groups = int(options.get("groups", 1))
    x, kernel = call_input, tuple(weight.shape[2:])
    if x.ndim == weight.ndim - 1:
        x = x.unsqueeze(0)
    walk = {key: _each(options.get(key, 1), len(kernel)) for key in ("stride", "dilation")}
    x = F.pad(x, _padding(options.get("padding", 0), kernel, walk))
    if len(kernel) == 1:
        x, kernel = x.unsqueeze(2), (1, *kernel)
        walk = {key: (1, *value) for key, value in walk.items()}
    unfolded = F.unfold(x, kernel, stride=walk["stride"], dilation=walk["dilation"])
    parts = unfolded.view(len(x), groups, -1, unfolded.shape[-1])
    return parts.permute(1, 0, 3, 2).reshape(groups, -1, parts.shape[2])


def _each(value: Any, count: int) -> tuple[int, ...]:
    given = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    return tuple(int(v) for v in (given * count if len(given) == 1 else given))


def _padding(value: Any, kernel: tuple[int, ...], walk: Mapping[str, tuple[int, ...]]) -> list[int]:
    """Zeros before and behind each axis, the last axis first, as `F.pad` takes them."""
    if value == "valid":
        value = 0
    if value == "same":
        wide = [d * (k - 1) for d, k in zip(walk["dilation"], kernel, strict=True)]
        sides = [(total // 2, total - total // 2) for total in wide]
    else:
        sides = [(side, side) for side in _each(value, len(kernel))]
    return [zeros for pair in reversed(sides) for zeros in pair]


class _Watching(TorchFunctionMode):
    """Shows each call of a linear layer or convolution with one of some weights.

    Args:
        weights: parameters to look for.
        saw: called with the weight's place among them, the call and its output.
    """

    def __init__(
        self, weights: Collection[Tensor], saw: Callable[[int, _Call, Tensor], None]
    ) -> None:
        super().__init__()
        self._places = {id(weight): place for place, weight in enumerate(weights)}
        self._saw = saw

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run the function, and tell of it."""
        kwargs = kwargs or {}
        output = function(*args, **kwargs)
        if function in _LAYERS:
            given = {**dict(zip(_ARGUMENTS, args, strict=False)), **kwargs}
            place = self._places.get(id(given["weight"]))
            if place is not None:
                given.pop("bias", None)
                self._saw(place, _Call(**given), output)
        return output


@torch.no_grad()
def grams_of(
    model: nn.Module, weights: Mapping[str, Tensor], images: Iterable[Tensor]
) -> dict[str, Tensor]:
    """Gram matrices H = X'X of what enters layers, in evaluation mode.

    One pass over the images; of a batch no more is unfolded than 16 million numbers at a time.

    Args:
        model: network; it computes with the weights and quantizers as they are now.
        weights: name -> parameter of a linear layer or convolution.
        images: batches, on the network's device.

    Returns:
        Name -> H (G, N, N) float64; a name is absent whose weight no such layer multiplies by.
        A weight of several calls has their sum.
    """
    names, found = list(weights), dict[str, Tensor]()

    def saw(place: int, call: _Call, output: Tensor) -> None:
        options = {key: getattr(call, key) for key in ("stride", "padding", "dilation", "groups")}
        x = call.input if call.weight.ndim > 2 else call.input.reshape(-1, call.input.shape[-1])
        each = max(1, output.numel() // (call.weight.shape[0] * len(x))) * call.weight[0].numel()
        step = max(1, _UNFOLDED // (each * call.groups))
        if x.ndim == call.weight.ndim - 1:  # an image without its batch
            x, step = x.unsqueeze(0), 1
        for part in torch.split(x, step):
            rows = columns(part, call.weight, options).double()
            gram = rows.transpose(1, 2) @ rows
            name = names[place]
            found[name] = found[name].add_(gram) if name in found else gram

    with evaluating(model), _Watching(list(weights.values()), saw):
        for batch in images:
            model(batch)
    return found


@torch.no_grad()
def output_means(
    model: nn.Module, weights: Mapping[str, Tensor], images: Iterable[Tensor]
) -> dict[str, Tensor]:
    """Mean output of each channel of layers, (O,) float64, in evaluation mode; see `grams_of`."""
    names, sums, counts = list(weights), dict[str, Tensor](), dict[str, int]()

    def saw(place: int, call: _Call, output: Tensor) -> None:
        name, axis = names[place], -1 if call.weight.ndim == 2 else 1 - call.weight.ndim
        flat = output.detach().double().movedim(axis, 0).flatten(1)
        sums[name] = sums[name] + flat.sum(dim=1) if name in sums else flat.sum(dim=1)
        counts[name] = counts.get(name, 0) + flat.shape[1]

    with evaluating(model), _Watching(list(weights.values()), saw):
        for batch in images:
            model(batch)
    return {name: sums[name] / counts[name] for name in sums}


def passes(weights: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """Layers whose Gram matrices are held at once: as many as fit into half a GiB, at least one.

    Args:
        weights: name -> weight (O, I, ...), in the order of the layers.
    """
    found: list[dict[str, Tensor]] = []
    held = math.inf
    for name, weight in weights.items():
        size = weight[0].numel() ** 2  # groups have one each, of few inputs
        if held + size > _GRAMS:
            found.append({})
            held = 0
        found[-1][name] = weight
        held += size
    return found
