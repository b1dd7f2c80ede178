"""Dotted keys: one way to name a value inside the groups of a config. Standard library only."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any


def join(path: str, key: str) -> str:
    """Dotted key of `key` inside `path` (the top level has the empty path)."""
    return f"{path}.{key}" if path else key


def at(config: Any, key: str, default: Any = None) -> Any:
    """The value at a dotted key.

    Args:
        config: groups inside groups.
        key: dotted.
        default: where there is none.

    >>> at({"quant": {"rule": {"rho": 0.1}}}, "quant.rule.rho")
    0.1
    """
    node = config
    for name in key.split("."):
        if not isinstance(node, Mapping) or name not in node:
            return default
        node = node[name]
    return node


def flat(config: Any, path: str = "") -> dict[str, Any]:
    """Groups inside groups as one mapping of dotted keys; an empty group is a value.

    Args:
        config: groups inside groups.
        path: dotted key of the outermost one.

    >>> flat({"quant": {"rule": {"rho": 0.1}}, "logger": {}})
    {'quant.rule.rho': 0.1, 'logger': {}}
    """
    if not isinstance(config, Mapping) or not config:
        return {path: config}
    return {
        key: value
        for name, child in config.items()
        for key, value in flat(child, join(path, str(name))).items()
    }


def entries(config: Any, path: str = "") -> Iterator[tuple[str, str, Any]]:
    """(dotted key, name, value) of every key and every item of a list at any depth; groups, too.

    Args:
        config: groups and lists inside groups and lists.
        path: dotted key of the outermost one.

    >>> list(entries({"weight": {"bits": [4]}}))[1:]
    [('weight.bits', 'bits', [4]), ('weight.bits[0]', '', 4)]
    """
    named: Iterable[tuple[str, str, Any]] = ()
    if isinstance(config, Mapping):
        named = ((join(path, str(name)), str(name), child) for name, child in config.items())
    elif isinstance(config, (list, tuple, set)):
        named = ((f"{path}[{index}]", "", child) for index, child in enumerate(config))
    for key, name, child in named:
        yield key, name, child
        yield from entries(child, key)
