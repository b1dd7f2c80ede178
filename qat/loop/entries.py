"""State dicts of modules that hold a prepared network, under the keys that the float one has."""

from collections.abc import Collection
from typing import Any

from torch import Tensor, nn

from qat.nn.activation import QuantizedActivation
from qat.nn.parametrization import WeightParametrization
from qat.quantize.loading import quantizer_entries
from qat.quantize.names import plain_key

_NOTE = "_qat_has_loaded"


def parted(
    state: dict[str, Any], module: nn.Module, net: nn.Module
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A state dict as the float network's, and what its quantizers keep.

    Args:
        state: of `module`.
        module: holds the network, or is it.
        net: prepared network.

    Returns:
        The state without the quantizers' entries, weights under their plain names; and the
        quantizers' entries by their names in the network.
    """
    kept, renamed = _names(module, set(net.modules()))
    plain = {
        plain_key(key) if key in renamed else key: value
        for key, value in state.items()
        if key not in kept
    }
    values = net.state_dict()
    return plain, {key: values[key] for key in quantizer_entries(net)}


def accept_float(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Hook before a module loads a state dict: that of the float network in it serves as well.

    What quantizers keep stays as it is then. The module notes that it has loaded.

    Args:
        module: holds a prepared network, or is it.
        state: entries that begin with `prefix`, changed in place.
        prefix: of its entries.
    """
    module.__dict__[_NOTE] = True
    kept, renamed = _names(module, set(module.modules()))
    values = module.state_dict()
    for key in kept:
        state.setdefault(prefix + key, values[key])
    for key in renamed:
        if prefix + plain_key(key) in state:
            state[prefix + key] = state.pop(prefix + plain_key(key))


def has_loaded(net: nn.Module) -> bool:
    """Whether a network has loaded a state dict since this was asked last."""
    return bool(net.__dict__.pop(_NOTE, False))


def _names(module: nn.Module, members: Collection[nn.Module]) -> tuple[set[str], set[str]]:
    """Keys of a module's state dict: what quantizers among `members` keep, what weights in them.

    A part of the network may go by several names, in its container and beside it.
    """
    kept, renamed = set(), set()
    for name, child in module.named_modules(remove_duplicate=False):
        if child in members and isinstance(child, (QuantizedActivation, WeightParametrization)):
            kept |= {f"{name}.{key}" for key in child.state_dict()}
            if isinstance(child, WeightParametrization):
                renamed.add(f"{name.rpartition('.')[0]}.original")
    return kept, renamed
