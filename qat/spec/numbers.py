"""Options that change no number: declared where each option stands, read by all who compare runs.

An option says what another value of it moves (`qat.spec.schema.option`). The groups that other
packages own (trainer, logger, callbacks) have no options of ours; theirs are named here.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any

from qat.spec.keys import join
from qat.spec.run import RunSpec
from qat.spec.schema import Moves, declared

# of lightning.Trainer and of the command itself
_FOREIGN: dict[str, Moves] = {
    "trainer.enable_progress_bar": "nothing",
    "trainer.log_every_n_steps": "nothing",
    "allow_targets": "nothing",
}


# the same for keys that came later, with the value that means what was done before
_FOREIGN_ADDED: dict[str, Any] = {"trainer.num_nodes": 1}


@cache
def keys_that_move(what: Moves) -> frozenset[str]:
    """Dotted keys of the config whose values move the bits, or nothing; a group is one key.

    >>> sorted(key for key in keys_that_move("bits") if not key.startswith("runtime."))
    ['training.compile', 'training.threads']
    """
    foreign = {key for key, moves in _FOREIGN.items() if moves == what}
    own = {
        option.key
        for option in declared(RunSpec)
        if option.field.metadata.get("moves", "numbers") == what
    }
    return frozenset(foreign | own)


def moves_nothing(key: str) -> bool:
    """Whether a dotted key, or a group above it, changes nothing in a run's results."""
    parts = key.split(".")
    above = {".".join(parts[:count]) for count in range(1, len(parts) + 1)}
    return bool(above & keys_that_move("nothing"))


def is_as_before(key: str, value: object) -> bool:
    """Whether a dotted key came later, and has the value that means what was done without it.

    >>> is_as_before("data.split", "index"), is_as_before("data.split", "path")
    (True, False)
    """
    added = _added()
    return key in added and bool(value == added[key])


def without_added(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config without the options that came later, where they are at their defaults."""
    return _without(config, "", _added())


@cache
def _added() -> dict[str, Any]:
    added = (option for option in declared(RunSpec) if option.field.metadata.get("is_added"))
    return _FOREIGN_ADDED | {option.key: option.field.default for option in added}


def _without(node: Mapping[str, Any], path: str, added: Mapping[str, Any]) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for name, child in node.items():
        key = join(path, name)
        if key in added and child == added[key]:
            continue
        if not isinstance(child, Mapping):
            kept[name] = child
        elif (inner := _without(child, key, added)) or not child:
            kept[name] = inner  # a group that came later, with all of its options, is left out
    return kept
