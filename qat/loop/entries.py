"""State dicts of modules that hold a prepared network, under the keys that the float one has."""

from typing import Any

from torch import Tensor, nn

from qat.quantize.loading import quantizer_entries
from qat.quantize.names import plain_key

_NOTE = "_qat_was_given_quantizers"


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
    entries = set(quantizer_entries(net))
    prefixes = _prefixes(module, net)
    plain = dict(state)
    own = {key: state[prefixes[0] + key] for key in entries if prefixes[0] + key in state}
    for prefix in prefixes:
        for key in [key for key in plain if key.startswith(prefix)]:
            value, name = plain.pop(key), key.removeprefix(prefix)
            if name not in entries:
                plain[prefix + plain_key(name)] = value
    return plain, own


def accept_float(net: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Hook before a prepared network loads a state dict: that of the float network serves as well.

    What quantizers keep stays as it is then. The network notes whether it was given theirs.

    Args:
        net: prepared network.
        state: entries that begin with `prefix`, changed in place.
        prefix: of its entries.
    """
    entries = set(quantizer_entries(net))
    net.__dict__[_NOTE] = any(prefix + key in state for key in entries)
    for key, value in net.state_dict().items():
        plain = prefix + plain_key(key)
        if key in entries:
            state.setdefault(prefix + key, value)
        elif plain in state:
            state[prefix + key] = state.pop(plain)


def was_given_quantizers(net: nn.Module) -> bool:
    """Whether the state dict that a network loaded last was of the prepared one."""
    return bool(net.__dict__.get(_NOTE, False))


def _prefixes(module: nn.Module, net: nn.Module) -> list[str]:
    """What the names of a network's entries begin with in a module's state dict."""
    names = module.named_modules(remove_duplicate=False)
    return [f"{name}." if name else "" for name, child in names if child is net]
