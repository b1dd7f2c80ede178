"""Graph nodes of the modules of a traced network."""

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from qat.export.integer.graph import (
    Affine,
    AveragePool,
    Curve,
    Flatten,
    Layer,
    MaxPool,
    Node,
    Relu,
    Repeat,
    WindowMean,
)
from qat.export.integer.refusals import Site, same
from qat.export.integer.windows import pair, window_multiple
from qat.export.packed.weight_codes import WeightCodes


def layer_node(path: str, module: Any, codes: WeightCodes | None, site: Site) -> Layer:
    """A convolution or a linear layer with its codes, None if its weight is float.

    Raises:
        SpecError: another kind of layer, or geometry that is not exported.
    """
    is_parametrized = parametrize.is_parametrized(module)
    kind = type(module).__base__ if is_parametrized else type(module)
    is_conv = issubclass(nn.Conv2d, kind)  # type: ignore[arg-type]
    if not is_conv and not isinstance(module, nn.Linear):
        raise site.refusal()
    if not is_conv and len(site.shape) != 1:
        raise site.refusal(f"maps vectors within {site.before}", "flatten its input first")
    geometry = _geometry(module, site) if is_conv else {}
    return _layer(path, module.weight, module.bias, codes, geometry, site)


def functional_layer(
    path: str, options: Mapping[str, Any], codes: WeightCodes | None, site: Site
) -> Layer:
    """`F.linear` or `F.conv2d` of a weight that the model holds.

    Args:
        path: dotted name of the module that holds it.
        options: weight, bias and what the function is told of its geometry.
        codes: of the weight, None if it is float.
        site: where it stands.

    Raises:
        SpecError: geometry that is not exported.
    """
    weight, geometry = options["weight"], {}
    if weight.ndim == 2 and len(site.shape) != 1:
        raise site.refusal(f"maps vectors within {site.before}", "flatten its input first")
    if weight.ndim == 4:
        told = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1} | dict(options)
        told["dilation"] = pair(told["dilation"])
        shape = tuple(weight.shape[2:])
        geometry = _geometry(SimpleNamespace(**told, padding_mode="zeros", kernel_size=shape), site)
    return _layer(path, weight, options.get("bias"), codes, geometry, site)


def _layer(
    path: str,
    weight: Tensor,
    bias: Tensor | None,
    codes: WeightCodes | None,
    geometry: Mapping[str, Any],
    site: Site,
) -> Layer:
    weight = weight.detach().float() if codes is None else codes.levels()
    outputs = weight.shape[0]
    scale = torch.ones(()) if codes is None else codes.scale
    bias = torch.zeros(outputs) if bias is None else bias.detach()
    return Layer(
        path=path,
        codes=codes,
        weight=weight,
        multiplier=scale.double().flatten().expand(outputs).clone(),
        offset=bias.double(),
        offset_size=bias.double().abs(),
        **geometry,
        **site.fields,
    )


def module_node(module: nn.Module, site: Site) -> Node:
    """Any other module that holds no others.

    Raises:
        SpecError: a kind that is not known here.
    """
    reader = _READERS.get(type(module))
    if reader is None:
        raise site.refusal()
    return reader(module, site)


def max_pool(module: Any, site: Site) -> MaxPool:
    """The maximum over windows of an `nn.MaxPool2d`; each must begin on the map or before it."""
    pool = MaxPool(
        kernel=pair(module.kernel_size),
        stride=pair(module.stride),
        padding=pair(module.padding),
        dilation=pair(module.dilation),
        ceil_mode=bool(module.ceil_mode),
        **site.fields,
    )
    if pool.ceil_mode and _windows(pool, site.before[1:]) != site.shape[1:]:
        # torch leaves such a window out, ONNX does not
        raise site.refusal("has a window that begins behind the map", "use ceil_mode=False")
    return pool


def average_pool(module: Any, site: Site) -> Node:
    """The mean over windows of an `nn.AvgPool2d`."""
    window = pair(module.kernel_size)
    is_plain = (
        pair(module.stride) == window
        and not any(pair(module.padding))
        and module.divisor_override in (None, window[0] * window[1])
    )
    has_zeros = any(pair(module.padding)) and module.count_include_pad
    return _mean_over(window if is_plain else None, module, site, has_zeros=has_zeros)


def adaptive_average_pool(module: Any, site: Site) -> Node:
    """The mean of an `nn.AdaptiveAvgPool2d`."""
    pool = module or nn.AdaptiveAvgPool2d(site.shape[1:])
    rows, columns = (b // a for b, a in zip(site.before[1:], site.shape[1:], strict=True))
    return _mean_over((rows, columns), pool, site)


def _mean_over(
    window: tuple[int, int] | None, pool: nn.Module, site: Site, *, has_zeros: bool = False
) -> Node:
    """A mean whose windows lie side by side, if one is given that fills the map, or any other."""
    sides = [n * w for n, w in zip(site.shape[1:], window or (0, 0), strict=True)]
    if window is None or sides != list(site.before[1:]):
        if getattr(pool, "divisor_override", None) is not None:
            raise site.refusal("divides by a number of its own", "leave divisor_override out")
        multiple = window_multiple(pool, site.before, site.shape)
        return WindowMean(
            pool=pool, multiple=multiple, has_zeros=has_zeros, place=site.place, **site.fields
        )
    if window == (1, 1):
        return same(site)
    return AveragePool(kernel=window, keeps_axes=True, **site.fields)


def enlarged(module: nn.Upsample, site: Site) -> Node:
    """An `nn.Upsample` of nearest neighbours by whole numbers."""
    rows, columns = (a // b for b, a in zip(site.before[1:], site.shape[1:], strict=True))
    is_whole = site.shape[1:] == (rows * site.before[1], columns * site.before[2])
    # a factor of 3.05 gives the size of 3, and other neighbours
    given: Any = module.scale_factor
    factors = given if isinstance(given, (tuple, list)) else (given, given)
    is_exact = given is None or tuple(factors) == (rows, columns)
    if module.mode != "nearest" or not is_whole or not is_exact:
        raise site.refusal("enlarges by no whole number, or not by nearest neighbours")
    return Repeat(factor=(rows, columns), place=site.place, **site.fields)


def constant_affine(name: str, value: Tensor | float, site: Site, *, is_first: bool) -> Node:
    """Arithmetic with a number, or with one number for each channel: x * c, x + c, x - c, x / c.

    Args:
        name: of the function: mul, add, sub or div.
        value: the constant.
        site: where it stands.
        is_first: whether the constant is the first operand.
    """
    constant = torch.as_tensor(value, dtype=torch.float64).detach()
    channels, ndim = site.shape[0], len(site.shape)
    shape = (*(1 for _ in range(constant.ndim - ndim)), channels, *(1 for _ in site.shape[1:]))
    is_per_channel = tuple(constant.shape) == shape
    if site.shape != site.before or not (constant.numel() == 1 or is_per_channel):
        raise site.refusal("has a constant that is not one number, or one for each channel")
    if is_first and name in ("sub", "div"):
        raise site.refusal("takes its input from a constant, or divides a constant by it")
    if name == "div" and not bool(constant.all()):
        raise site.refusal("divides by zero")
    constant = constant.reshape(-1).expand(channels)
    one, zero = torch.ones_like(constant), torch.zeros_like(constant)
    multiplier = {"mul": constant, "div": 1 / constant}.get(name, one)
    offset = {"add": constant, "sub": -constant}.get(name, zero)
    return Affine(multiplier=multiplier, offset=offset, offset_size=offset.abs(), **site.fields)


def affine(
    mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, *, eps: float, site: Site
) -> Affine:
    """(x - mean) / sqrt(var + eps) * weight + bias as multiplier and offset, in float64."""
    multiplier = 1 / (var.detach().double() + eps).sqrt()
    if weight is not None:
        multiplier = multiplier * weight.detach().double()
    offset = -mean.detach().double() * multiplier
    size = offset.abs()
    if bias is not None:
        offset, size = offset + bias.detach().double(), size + bias.detach().double().abs()
    return Affine(multiplier=multiplier, offset=offset, offset_size=size, **site.fields)


def curve(kind: str) -> Callable[[Any, Site], Node]:
    """The reader of an activation function, see `qat.export.integer.curves`."""
    return lambda _, site: Curve(kind=kind, place=site.place, **site.fields)


def gelu(module: nn.GELU, site: Site) -> Node:
    """One of the two functions of that name."""
    return curve("gelu" if module.approximate == "none" else "gelu_tanh")(module, site)


def _batch_norm(module: Any, site: Site) -> Affine:
    if module.running_mean is None:
        raise site.refusal("has no running statistics", "build it with track_running_stats=True")
    return affine(
        module.running_mean,
        module.running_var,
        module.weight,
        module.bias,
        eps=module.eps,
        site=site,
    )


def _flatten(module: Any, site: Site) -> Node:
    if (module.start_dim, module.end_dim % (len(site.before) + 1)) != (1, len(site.before)):
        raise site.refusal(f"keeps some axes of {site.before}", "use Flatten(1)")
    return same(site) if site.shape == site.before else Flatten(**site.fields)


def _windows(pool: MaxPool, size: tuple[int, ...]) -> tuple[int, ...]:
    """Windows in rows and columns, those that begin behind the map included."""
    options = zip(size, pool.kernel, pool.stride, pool.padding, pool.dilation, strict=True)
    return tuple(-(-(n + 2 * p - d * (k - 1) - 1) // s) + 1 for n, k, s, p, d in options)


def _geometry(module: Any, site: Site) -> dict[str, Any]:
    if module.padding_mode != "zeros":
        raise site.refusal(
            f"pads by {module.padding_mode}", "build the model with padding_mode=zeros"
        )
    return {
        "stride": pair(module.stride),
        "padding": _padding(module, site),
        "dilation": pair(module.dilation),
        "groups": module.groups,
    }


def _padding(module: Any, site: Site) -> tuple[int, int]:
    if not isinstance(module.padding, str):
        return pair(module.padding)
    if module.padding == "valid":
        return (0, 0)
    reach = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
    if any(r % 2 for r in reach):
        raise site.refusal("pads one side more than the other", "use an odd kernel")
    return reach[0] // 2, reach[1] // 2


_READERS: dict[type, Callable[[Any, Site], Node]] = {
    **dict.fromkeys((nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d), lambda _, s: same(s)),
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d), _batch_norm),
    nn.ReLU: lambda _, site: Relu(ceiling=None, **site.fields),
    nn.ReLU6: lambda _, site: Relu(ceiling=6.0, **site.fields),
    nn.Hardsigmoid: curve("hardsigmoid"),
    nn.Hardswish: curve("hardswish"),
    nn.Sigmoid: curve("sigmoid"),
    nn.SiLU: curve("silu"),
    nn.GELU: gelu,
    nn.MaxPool2d: max_pool,
    nn.AvgPool2d: average_pool,
    nn.AdaptiveAvgPool2d: adaptive_average_pool,
    nn.Flatten: _flatten,
    nn.Upsample: enlarged,
}
