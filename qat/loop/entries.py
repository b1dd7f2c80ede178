"""State dicts of modules that hold a prepared network, under the keys that the float one has."""

from typing import Any

from torch import Tensor, nn

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
    values, members = net.state_dict(), set(net.modules())
    # a part of the network may go by several names, in its container and beside it
    names = module.named_modules(remove_duplicate=False)
    inside = {name: child for name, child in names if child in members}
    kept = {f"{name}.{key}" for name, child in inside.items() for key in quantizer_entries(child)}
    kept = {key.removeprefix(".") for key in kept}
    plain = {}
    for key, value in state.items():
        if key not in kept:
            holder = key.rpartition(".")[0]
            plain[plain_key(key) if holder in inside else key] = value
    return plain, {key: values[key] for key in quantizer_entries(net)}


def accept_float(net: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Hook before a prepared network loads a state dict: that of the float network serves as well.

    What quantizers keep stays as it is then. The network notes that it has loaded.

    Args:
        net: prepared network.
        state: entries that begin with `prefix`, changed in place.
        prefix: of its entries.
    """
    entries = set(quantizer_entries(net))
    net.__dict__[_NOTE] = True
    for key, value in net.state_dict().items():
        plain = prefix + plain_key(key)
        if key in entries:
            state.setdefault(prefix + key, value)
        elif plain in state:
            state[prefix + key] = state.pop(plain)


def has_loaded(net: nn.Module) -> bool:
    """Whether a network has loaded a state dict since this was asked last."""
    return bool(net.__dict__.pop(_NOTE, False))
