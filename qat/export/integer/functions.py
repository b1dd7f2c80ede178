"""Graph nodes of the functions and tensor methods of a traced network."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from itertools import chain
from typing import Any, NamedTuple, TypeGuard

from torch import nn

from qat.export.integer.graph import (
    Add,
    AveragePool,
    Channels,
    Concat,
    Flatten,
    Grouped,
    MaxPool,
    Multiply,
    Node,
    Relu,
    Subsample,
)
from qat.export.integer.modules import (
    adaptive_average_pool,
    affine,
    average_pool,
    curve,
    enlarged,
    gelu,
    max_pool,
)
from qat.export.integer.refusals import Site, same

Options = Mapping[str, Any]


class _Function(NamedTuple):
    """How a function is read: its node, given options; names of its arguments behind the input."""

    node: Callable[[Options, Site], Node]
    arguments: tuple[str, ...] = ()


def function_node(name: str, args: tuple[Any, ...], kwargs: Options, site: Site) -> Node:
    """The node of a function or method.

    Args:
        name: as `qat.export.integer.refusals.function_name` tells it.
        args: its positional arguments behind the first tensor.
        kwargs: the others.
        site: where it stands.

    Raises:
        SpecError: a function that is not known here, or options of it.
    """
    function = FUNCTIONS.get(name)
    if function is None or not site.inputs:
        raise site.refusal()
    options = dict(zip(function.arguments, args, strict=False)) | dict(kwargs)
    return function.node(options, site)


def _add(options: Options, site: Site) -> Node:
    shapes = [node.shape for node in site.inputs]
    if shapes != [site.shape] * 2 or options.get("alpha", 1) != 1:
        raise site.refusal("is a sum that is not of two maps of one shape")
    return Add(**site.fields)


def _multiply(options: Options, site: Site) -> Node:
    shapes = [node.shape for node in site.inputs]
    gates = {(site.shape[0], *(1 for _ in site.shape[1:])), site.shape}
    if len(shapes) != 2 or site.shape not in shapes or not gates.issuperset(shapes):
        raise site.refusal("is a product that is not of two maps, or of a map and its gates")
    return Multiply(place=site.place, **site.fields)


def _gelu(options: Options, site: Site) -> Node:
    return gelu(nn.GELU(**options), site)


def channels(site: Site, indices: Iterable[int]) -> Node:
    """Some channels of a map."""
    return Channels(indices=tuple(indices), place=site.place, **site.fields)


def _shuffle(options: Options, site: Site) -> Node:
    order = _grouped_order(site.before[0], int(options["groups"]))
    return channels(site, chain.from_iterable(zip(*order, strict=True)))


def _grouped_order(count: int, groups: int) -> tuple[tuple[int, ...], ...]:
    size = count // groups
    return tuple(tuple(range(g * size, (g + 1) * size)) for g in range(groups))


def _transpose(options: Options, site: Site) -> Node:
    grouped = site.inputs[0]
    axes = {int(options["dim0"]) % 5, int(options["dim1"]) % 5}
    if not isinstance(grouped, Grouped) or axes != {1, 2}:
        raise site.refusal("swaps other axes than those of groups of channels")
    order = tuple(zip(*grouped.order, strict=True))
    return Grouped(name=site.name, inputs=grouped.inputs, shape=site.shape, order=order)


def _concat(options: Options, site: Site) -> Node:
    if options.get("dim", 0) not in (1, 1 - len(site.shape) - 1) or options.get("out") is not None:
        raise site.refusal("joins other axes than the channels")
    return Concat(**site.fields)


def _flatten(options: Options, site: Site) -> Node:
    if site.shape == site.before:
        return same(site)
    grouped = site.inputs[0]
    if isinstance(grouped, Grouped):
        if site.shape != (math.prod(site.before[:2]), *site.before[2:]):
            raise site.refusal(f"makes {site.shape} of {site.before}")
        indices = chain.from_iterable(grouped.order)
        return replace(channels(site, indices), inputs=grouped.inputs)
    if len(site.shape) == 4 and (math.prod(site.shape[:2]), *site.shape[2:]) == site.before:
        return Grouped(order=_grouped_order(site.before[0], site.shape[0]), **site.fields)
    if site.shape != (math.prod(site.before),):
        raise site.refusal(f"makes {site.shape} of {site.before}")
    return Flatten(**site.fields)


def _mean(options: Options, site: Site) -> Node:
    before, given = site.before, options.get("dim", ())
    axes = given if isinstance(given, (tuple, list)) else (given,)
    if len(before) != 3 or {int(axis) % 4 for axis in axes} != {2, 3}:
        raise site.refusal("is a mean over other axes than rows and columns")
    keeps_axes = len(site.shape) == 3
    return AveragePool(kernel=(before[1], before[2]), keeps_axes=keeps_axes, **site.fields)


def _max_pool(options: Options, site: Site) -> MaxPool:
    return max_pool(nn.MaxPool2d(**options), site)


def _average_pool(options: Options, site: Site) -> Node:
    return average_pool(nn.AvgPool2d(**options), site)


def _adaptive_average_pool(options: Options, site: Site) -> Node:
    return adaptive_average_pool(None, site)


def _dropout(options: Options, site: Site) -> Node:
    if options.get("training", True) is not False:
        raise site.refusal("drops in evaluation too", "give it training=self.training")
    return same(site)


def _batch_norm(options: Options, site: Site) -> Node:
    mean = options.get("running_mean")
    if mean is None or options.get("training"):
        raise site.refusal("uses no running statistics", "take a batch norm module")
    return affine(
        mean,
        options["running_var"],
        options.get("weight"),
        options.get("bias"),
        eps=float(options.get("eps", 1e-5)),
        site=site,
    )


def _subsample(options: Options, site: Site) -> Node:
    index = options["index"]
    steps = [_step(part) for part in (index if isinstance(index, tuple) else (index,))]
    part = index[1] if isinstance(index, tuple) and len(index) > 1 else None
    if _is_of_numbers(part) and set(steps[:1] + steps[2:]) == {1} and steps[1] != 1:
        return channels(site, range(site.before[0])[part])
    if len(steps) != 4 or None in steps or steps[:2] != [1, 1]:
        raise site.refusal("takes a part that is not every n-th row and column")
    stride = (int(steps[2] or 1), int(steps[3] or 1))
    return Subsample(stride=stride, channels=(0, 0), **site.fields)


def _is_of_numbers(part: Any) -> TypeGuard[slice]:
    """Whether it is a slice whose ends are known."""
    return isinstance(part, slice) and all(
        bound is None or isinstance(bound, int) for bound in (part.start, part.stop, part.step)
    )


def _step(part: Any) -> int | None:
    """Step of a slice that leaves nothing out but by its step, else None."""
    if isinstance(part, slice) and part.start in (None, 0) and part.stop is None:
        return 1 if part.step is None else int(part.step)
    return None


def _pad(options: Options, site: Site) -> Node:
    widths = [int(width) for width in options["pad"]]
    by_zeros = options.get("mode", "constant") == "constant" and not options.get("value")
    if not by_zeros or len(widths) != 6 or any(widths[:4]) or min(widths) < 0:
        raise site.refusal("pads other axes than the channels, or not by zeros")
    return Subsample(stride=(1, 1), channels=(widths[4], widths[5]), **site.fields)


def _interpolate(options: Options, site: Site) -> Node:
    mode = options.get("mode", "nearest")
    return enlarged(nn.Upsample(options.get("size"), options.get("scale_factor"), mode), site)


_PLAIN_CURVES = ("hardsigmoid", "hardswish", "sigmoid", "silu")
_WINDOW = ("kernel_size", "stride", "padding")
FUNCTIONS: dict[str, _Function] = {
    **dict.fromkeys(("contiguous", "clone", "detach"), _Function(lambda _, site: same(site))),
    **dict.fromkeys(("dropout", "dropout1d", "dropout2d"), _Function(_dropout, ("p", "training"))),
    "stochastic_depth": _Function(_dropout, ("p", "mode", "training")),
    "interpolate": _Function(_interpolate, ("size", "scale_factor", "mode")),
    **dict.fromkeys(("add", "iadd", "add_"), _Function(_add)),
    **dict.fromkeys(("mul", "imul", "mul_", "multiply"), _Function(_multiply)),
    **{f"{name}{end}": _Function(curve(name)) for name in _PLAIN_CURVES for end in ("", "_")},
    "gelu": _Function(_gelu),
    "channel_shuffle": _Function(_shuffle, ("groups",)),
    "transpose": _Function(_transpose, ("dim0", "dim1")),
    **dict.fromkeys(("cat", "concat"), _Function(_concat, ("dim",))),
    **dict.fromkeys(("relu", "relu_"), _Function(lambda _, s: Relu(ceiling=None, **s.fields))),
    "relu6": _Function(lambda _, site: Relu(ceiling=6.0, **site.fields)),
    **dict.fromkeys(("flatten", "view", "reshape"), _Function(_flatten)),
    "mean": _Function(_mean, ("dim", "keepdim")),
    "adaptive_avg_pool2d": _Function(_adaptive_average_pool),
    "avg_pool2d": _Function(
        _average_pool, (*_WINDOW, "ceil_mode", "count_include_pad", "divisor_override")
    ),
    "max_pool2d": _Function(_max_pool, (*_WINDOW, "dilation", "ceil_mode", "return_indices")),
    "batch_norm": _Function(
        _batch_norm,
        ("running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
    ),
    "getitem": _Function(_subsample, ("index",)),
    "pad": _Function(_pad, ("pad", "mode", "value")),
}
