"""Weights by name: the parameters that a network multiplies by."""

import re
from collections.abc import Iterable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from qat.nn.parametrization import WeightParametrization
from qat.quantize.names import weight_name
from qat.quantize.reach import Reach, known_reach

CONV_TYPES = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


LAYER_TYPES = (*CONV_TYPES, nn.Linear)


TRANSPOSED_TYPES = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


RECURRENT_TYPES = (nn.RNNBase, nn.RNNCellBase)


# where their weights are, for a network that no example has run through
_WEIGHTS: tuple[tuple[tuple[type[nn.Module], ...], str], ...] = (
    ((*LAYER_TYPES, *TRANSPOSED_TYPES), r"weight"),
    ((nn.MultiheadAttention,), r"(in|q|k|v)_proj_weight"),
    (RECURRENT_TYPES, r"weight_.*"),
)


def latent_weight(model: nn.Module, name: str = "") -> Tensor:
    """The parameter of this name, also where a parametrization computes the weight of it.

    Args:
        model: network, or a layer with name "".
        name: as `weight_name` gives it.
    """
    owner, attribute = weight_place(model, name)
    holder: Any = owner
    if parametrize.is_parametrized(owner, attribute):
        return cast(Tensor, holder.parametrizations[attribute].original)
    return cast(Tensor, getattr(holder, attribute))


def current_weight(model: nn.Module, name: str) -> Tensor:
    """The parameter of this name, or what a quantizer of ours makes of it."""
    owner, attribute = weight_place(model, name)
    return cast(Tensor, getattr(owner, attribute))


def weight_count(model: nn.Module, name: str, reach: Reach | None) -> int:
    """Number of entries of the weight of this name."""
    return weight_shape(model, name, reach).numel()


def weight_shape(model: nn.Module, name: str, reach: Reach | None) -> torch.Size:
    """Shape of the weight of this name, a parameter or one that is made."""
    made = None if reach is None else reach.made.get(name)
    return latent_weight(model, name).shape if made is None else torch.Size(made.shape)


def weight_place(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that holds the weight of this name, and the attribute that is it."""
    owner, _, last = name.rpartition(".")
    module = model.get_submodule(owner)
    if not name:
        return module, "weight"
    # not by getattr, which would compute a weight, and let a spectral norm iterate once more
    if last in module._modules and (child := module._modules[last]) is not None:
        return child, "weight"
    return module, last


def weight_names(model: nn.Module, reach: Reach | None) -> dict[str, str]:
    """Names of the weights in the order of registration -> why one cannot be on a grid, or "".

    Without `reach` it is those of the layers of torch's own kinds; with it, these and whatever
    else enters a product. A parameter of several names has all of them.
    """
    reasons = {} if reach is None else reach.weights
    by_kind = dict(_by_kind(model))
    found: dict[str, str] = {}
    first_names: dict[int, str] = {}
    made = {} if reach is None else {p: n for n, m in reach.made.items() for p in m.parameters}
    for full, parameter in model.named_parameters(remove_duplicate=False):
        if full in made:
            found[made[full]] = ""
            continue
        name = weight_name(full)
        first = first_names.setdefault(id(parameter), name)
        if first in reasons:
            found[name] = reasons[first]
        elif name in by_kind:
            found[name] = by_kind[name]
    return found


def latent_weights(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter that enters products as it is, once, by the first of its names."""
    found: dict[int, tuple[str, Tensor]] = {}
    reach = known_reach(model)
    for name in weight_names(model, reach):
        if reach is not None and name in reach.made:
            continue
        weight = latent_weight(model, name)
        found.setdefault(id(weight), (name, weight))
    return dict(found.values())


def unwrapped(model: nn.Module) -> nn.Module:
    """The network inside what `torch.compile` or a parallel module has made of it."""
    while True:
        inner = model._modules.get("_orig_mod")
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner = model.module
        if inner is None:
            return model
        model = inner


def weight_parametrization(model: nn.Module, name: str) -> WeightParametrization | None:
    """The in-graph quantizer of the weight of this name, None if it has none."""
    owner, attribute = weight_place(model, name)
    if not parametrize.is_parametrized(owner, attribute):
        return None
    first = owner.parametrizations[attribute][0]  # type: ignore[index]
    return first if isinstance(first, WeightParametrization) else None


def weight_parametrizations(model: nn.Module) -> Iterator[tuple[str, WeightParametrization]]:
    """Name and in-graph quantizer of every parametrized weight in `model`."""
    for name, module in model.named_modules():
        if not parametrize.is_parametrized(module):
            continue
        for attribute, chain in module.parametrizations.items():
            if isinstance(chain[0], WeightParametrization):
                yield weight_name(f"{name}.{attribute}" if name else attribute), chain[0]


def _by_kind(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Names of the weights of torch's own layers, and what stands between them and a grid."""
    for name, module in model.named_modules():
        for kinds, pattern in _WEIGHTS:
            if not isinstance(module, kinds):
                continue
            own = [n for n, _ in module.named_parameters(recurse=False)]
            own += list(getattr(module, "parametrizations", ()))
            for attribute in own:
                if re.fullmatch(pattern, attribute):
                    full = f"{name}.{attribute}" if name else attribute
                    yield weight_name(full), _foreign(module, attribute)


def _foreign(module: nn.Module, attribute: str) -> str:
    if not parametrize.is_parametrized(module, attribute):
        return ""
    by = foreign_parametrization(module.parametrizations[attribute])  # type: ignore[index]
    return f"{by} makes the weight of it" if by else ""


def foreign_parametrization(chain: Iterable[nn.Module]) -> str:
    """The kind of the first parametrization that is none of ours, "" if there is none."""
    foreign = (m for m in chain if not isinstance(m, WeightParametrization))
    return next((type(module).__name__.strip("_") for module in foreign), "")
