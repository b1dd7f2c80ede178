"""Options that change no number: declared where each option stands, read by all who compare runs.

An option says what another value of it moves (`qat.spec.schema.option`). The groups that other
packages own (trainer, logger, callbacks) have no options of ours; theirs are named here.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, get_args, get_type_hints

from qat.spec.run import RunSpec
from qat.spec.schema import Moves, join

# of lightning.Trainer and of the command itself
_FOREIGN: dict[str, Moves] = {
    "trainer.enable_progress_bar": "nothing",
    "trainer.log_every_n_steps": "nothing",
    "allow_targets": "nothing",
}


# the same for keys that came later, with the value that means what was done before
_FOREIGN_ADDED: dict[str, Any] = {}


@cache
def keys_that_move(what: Moves) -> frozenset[str]:
    """Dotted keys of the config whose values move the bits, or nothing; a group is one key.

    >>> sorted(keys_that_move("bits"))
    ['training.compile', 'training.threads']
    """
    foreign = {key for key, moves in _FOREIGN.items() if moves == what}
    declared = {
        key for key, options, _ in _declared(RunSpec, "") if options.get("moves", "numbers") == what
    }
    return frozenset(foreign | declared)


def moves_nothing(key: str) -> bool:
    """Whether a dotted key, or a group above it, changes nothing in a run's results."""
    parts = key.split(".")
    above = {".".join(parts[:count]) for count in range(1, len(parts) + 1)}
    return bool(above & keys_that_move("nothing"))


def without_added(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config without the options that came later, where they are at their defaults."""
    return _without(config, "", _added())


@cache
def _added() -> dict[str, Any]:
    declared = {key: at for key, options, at in _declared(RunSpec, "") if options.get("is_added")}
    return _FOREIGN_ADDED | declared


def _without(node: Mapping[str, Any], path: str, added: Mapping[str, Any]) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for name, child in node.items():
        key = join(path, name)
        if key not in added or child != added[key]:
            kept[name] = _without(child, key, added) if isinstance(child, Mapping) else child
    return kept


def _declared(kind: type[Any], path: str) -> Iterator[tuple[str, Mapping[str, Any], Any]]:
    """(dotted key, metadata, default) of every option of a group and of the groups inside."""
    hints = get_type_hints(kind)
    for field in dataclasses.fields(kind):
        key = join(path, field.name)
        yield key, field.metadata, field.default
        for inner in (hints[field.name], *get_args(hints[field.name])):
            if isinstance(inner, type) and dataclasses.is_dataclass(inner):
                yield from _declared(inner, key)
