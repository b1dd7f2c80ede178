"""Loading of weights into a prepared network: strict, under the names that others give them."""

from collections.abc import Mapping
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn

from qat.errors import CheckpointError
from qat.nn.activation import QuantizedActivation
from qat.nn.parametrization import WeightParametrization
from qat.quantize.names import plain_key

# DataParallel and averages, Lightning modules, ours, compiled ones
_WRAPPERS = ("module.", "model.", "net.", "_orig_mod.")


def load_weights(model: nn.Module, state: Mapping[str, Any]) -> list[str]:
    """Strict load of float or of quantized weights into a prepared network.

    Args:
        model: prepared network.
        state: its own state dict, or that of the float network it was made from; the names may
            begin as wrappers begin them (`module.`, `model.`, `net.`, `_orig_mod.`).

    Returns:
        Names of the quantizers' own entries (steps, scales, shifts) that kept their start because
        `state` holds none of them (float weights).

    Raises:
        CheckpointError: keys or shapes differ, or only some of the quantizers' entries are there.
    """
    state, entries = _renamed(model, _unwrapped(model, state)), quantizer_entries(model)
    absent = [key for key in entries if key not in state]
    if absent and len(absent) < len(entries):
        raise CheckpointError(
            f"{len(absent)} of {len(entries)} entries of quantizers are missing (first: "
            f"{absent[0]}); the weights belong to a network with other quantizers"
        )
    own = model.state_dict()
    wanted = set(own) - set(absent)
    problems = name_problems(wanted, set(state))
    # what a module keeps as extra state is no tensor
    both = sorted(key for key in wanted & set(state) if isinstance(own[key], Tensor))
    strange = [key for key in both if not isinstance(state[key], Tensor)]
    problems += [f"{key} is a {type(state[key]).__name__} and no tensor" for key in strange]
    both = [key for key in both if key not in strange]
    problems += [
        f"{key} has shape {tuple(state[key].shape)}, the network wants {tuple(own[key].shape)}"
        for key in both
        if state[key].shape != own[key].shape
    ]
    problems += [
        f"{key} is {state[key].dtype}, the network wants {own[key].dtype}"
        for key in both
        if state[key].is_floating_point() != own[key].is_floating_point()
    ]
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise CheckpointError("weights do not fit: " + "; ".join(problems[:3]) + more)
    # into its own state dict, which also knows the versions of its modules' entries
    own.update(state)
    model.load_state_dict(own)
    return absent


def refuse_non_finite(model: nn.Module, name: str) -> None:
    """Refuse a network with a weight or statistic that is no number: its answers would be none.

    Args:
        model: network.
        name: what its weights came from, for the message.

    Raises:
        CheckpointError: NaN or infinity in the state dict.
    """
    for key, value in model.state_dict().items():
        is_float = isinstance(value, Tensor) and value.is_floating_point()
        if is_float and not is_finite(value):
            raise CheckpointError(
                f"{name} holds values in {key} that are no numbers (NaN or infinite): the training "
                "diverged or the file was changed; use an earlier checkpoint"
            )


def is_finite(tensor: Tensor) -> bool:
    """Whether no entry is NaN or infinite."""
    # no NaN or infinity cancels in a sum, which takes a tenth of the time but may overflow
    if tensor.dtype in (torch.float32, torch.float64) and bool(tensor.sum().isfinite()):
        return True
    return bool(tensor.isfinite().all())


def name_problems(wanted: set[str], found: set[str]) -> list[str]:
    """What is missing and what is unexpected, by turns: names of both stand beside each other."""
    missing = [f"missing {key}" for key in sorted(wanted - found)]
    unexpected = [f"unexpected {key}" for key in sorted(found - wanted)]
    pairs = zip_longest(missing, unexpected)
    return [problem for pair in pairs for problem in pair if problem is not None]


def _unwrapped(model: nn.Module, state: Mapping[str, Any]) -> Mapping[str, Any]:
    """`state` under the names of the network itself, without what wrappers put in front.

    What such a file holds under other names belongs to the wrapper: a loss, a counter.
    """
    wanted = {plain_key(key) for key in model.state_dict()}
    while not any(plain_key(key) in wanted for key in state):
        begin = next((b for b in _WRAPPERS if any(key.startswith(b) for key in state)), None)
        if begin is None:
            break
        state = {
            key.removeprefix(begin): value for key, value in state.items() if key.startswith(begin)
        }
    return state


def _renamed(model: nn.Module, state: Mapping[str, Any]) -> dict[str, Any]:
    """`state` with plain weights under the names that parametrized layers keep them by."""
    kept = {plain_key(key): key for key in model.state_dict()}
    return {kept.get(key, key): value for key, value in state.items()}


def quantizer_entries(model: nn.Module) -> list[str]:
    """Keys of a state dict that a float network does not have."""
    return [
        f"{name}.{key}"
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, (QuantizedActivation, WeightParametrization))
        for key in module.state_dict()
    ]
