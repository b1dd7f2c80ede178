"""Hydra overrides as text; standard library only."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from qat.errors import SpecError, shown

# what Hydra's grammar takes without quotes: these letters, one of others behind a backslash, and a
# backslash before anything else
_PLAIN = re.compile(
    r"(?:\\[()\[\]{}:=, \t\\]|\\(?![()\[\]{}:=, \t\\])|[A-Za-z0-9_/\-+.$%*@?|: \t])*"
)
_LOOKED_UP = re.compile(r"\$\{[^}]+\}")
_STRUCTURE = frozenset("\"'[]{}()")
_FUNCTION = re.compile(
    r"(?:int|float|str|bool|json_str|choice|range|interval|glob|sort|shuffle|tag|extend_list)"
    r"\s*\(.*\)\s*",
    re.DOTALL,
)


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
    """Overrides in which plain texts that Hydra's grammar does not take, as many paths, are quoted.

    What it takes stays as it is typed, as do lists, groups, functions and quoted texts.

    Raises:
        SpecError: bytes that are no UTF-8, which no config file can hold.

    >>> with_quoted_paths(["init_from=runs/a/step=00000042.ckpt", "seed=1,2", "data.root=/p (2)"])
    ['init_from="runs/a/step=00000042.ckpt"', 'seed=1,2', 'data.root="/p (2)"']
    """
    return [
        f"{key}{sign}{_readable(value)}"
        for key, sign, value in (_utf8(override).partition("=") for override in overrides)
    ]


def _utf8(override: str) -> str:
    try:
        override.encode()
    except UnicodeEncodeError:
        raise SpecError(
            f"{shown(override)} is no UTF-8, as the config of a run is; rename the file, or give a "
            "link to it"
        ) from None
    return override


def _readable(value: str) -> str:
    """A value as Hydra's grammar takes it; of several choices each."""
    bare = _LOOKED_UP.sub("", value)
    if _PLAIN.fullmatch(bare) or value[:1] in ("[", "{", '"', "'") or _FUNCTION.fullmatch(value):
        return value
    if "," not in value:
        return quoted(value.strip())
    if bare != value or not _STRUCTURE.isdisjoint(value):
        return value  # choices among which are lists or groups
    return ",".join(map(_readable, value.split(",")))


def quoted(text: str) -> str:
    """A text in double quotes; backslashes mean something to Hydra in front of a quote only."""
    return '"' + re.sub(r'(\\*)("|\Z)', _escaped, text) + '"'


def unquoted(value: str) -> str:
    """The text of a value that may be in quotes, single or double."""
    mark = value[:1]
    if mark not in ("'", '"') or len(value) < 2 or value[-1] != mark:
        return value
    return re.sub(rf"(\\+)({mark}|\Z)", lambda m: m[1][: len(m[1]) // 2] + m[2], value[1:-1])


def _escaped(found: "re.Match[str]") -> str:
    backslashes, quote = found.groups()
    return backslashes * 2 + ("\\" + quote if quote else "")
