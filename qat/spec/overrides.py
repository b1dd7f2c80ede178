"""Hydra overrides as text; standard library only."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

_SPECIAL = frozenset("\"'[]{}(),")  # what gives a value a structure, or quotes it already


def differences(base: Mapping[str, Any], wanted: Mapping[str, Any], key: str = "") -> Iterator[str]:
    """Overrides that turn one config into another; merging alone never takes a key away."""
    for name in {**base, **wanted}:
        path = f"{key}.{name}" if key else str(name)
        if name not in wanted:
            yield f"~{path}"
        elif isinstance(base.get(name), Mapping) and isinstance(wanted[name], Mapping):
            yield from differences(base[name], wanted[name], path)
        elif name not in base or base[name] != wanted[name]:
            yield f"++{path}={as_override(wanted[name])}"


def as_override(value: Any) -> str:
    """A plain value in the grammar of overrides."""
    if value is None or isinstance(value, bool):
        return str(value).lower().replace("none", "null")
    if isinstance(value, (list, tuple)):
        return f"[{','.join(as_override(item) for item in value)}]"
    if isinstance(value, Mapping):
        inner = ",".join(f"{name}: {as_override(item)}" for name, item in value.items())
        return f"{{{inner}}}"
    return quoted(value) if isinstance(value, str) else repr(value)


def with_quoted_paths(overrides: Iterable[str]) -> list[str]:
    """Overrides in which plain values that hold a `=`, as our checkpoints' names do, are quoted.

    >>> with_quoted_paths(["init_from=runs/a/step=00000042.ckpt", "seed=1,2"])
    ['init_from="runs/a/step=00000042.ckpt"', 'seed=1,2']
    """
    return [
        f"{key}={quoted(value)}"
        if "=" in value and _SPECIAL.isdisjoint(value)
        else f"{key}{sign}{value}"
        for key, sign, value in (override.partition("=") for override in overrides)
    ]


def quoted(text: str) -> str:
    """A text in double quotes."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
