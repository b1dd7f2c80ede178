"""Option schema: plain mappings into frozen, range-checked dataclasses; standard library only.

The option groups of `qat.spec` are dataclasses whose fields carry a type and, in `option(...)`, a
range. `read` is the only way from a config (a dict of plain values) to them, so every mistake of a
user ends here, in one line that names the key, the value and what is allowed.
"""

import dataclasses
import difflib
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from qat.errors import SpecError, a_or_an
from qat.spec.keys import join

T = TypeVar("T")
Moves = Literal["numbers", "bits", "nothing"]


def option(
    default: Any = dataclasses.MISSING,
    *,
    factory: Any = dataclasses.MISSING,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
    hint: str = "",
    moves: Moves = "numbers",
    is_added: bool = False,
    choices: tuple[str, ...] = (),
) -> Any:
    """A dataclass field with a range: closed ends `low`, `high`, open ends `above`, `below`.

    Args:
        default: value when the key is absent; a required key has none.
        factory: called for that value, where each instance needs its own.
        low: smallest allowed number.
        high: largest allowed number.
        above: the number must be greater than this.
        below: the number must be smaller than this.
        hint: the cure, appended to the message of a refused value.
        moves: what another value changes in a run's results: the numbers, the last bits (the order
            of sums), or nothing (where files lie, what is shown, how a run is continued).
        is_added: the option came after runs were recorded without it, and its default means what
            was done before; at its default it is left out of a config's hash, which so stays.
        choices: the texts that are allowed, where a table holds them; else a Literal does.
    """
    limits = {"low": low, "high": high, "above": above, "below": below}
    metadata = {**limits, "hint": hint, "moves": moves, "is_added": is_added, "choices": choices}
    if factory is not dataclasses.MISSING:
        return dataclasses.field(default_factory=factory, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def read(cls: type[T], values: object, path: str) -> T:
    """Build the frozen dataclass `cls` from a mapping of plain values.

    Args:
        cls: dataclass of fields made by `option`.
        values: mapping of field names to plain values (text, numbers, None, lists, mappings).
        path: dotted key of the mapping, for messages, e.g. "quant.weight".

    Raises:
        SpecError: unknown or missing key, wrong type, value out of range.
    """
    if not isinstance(values, Mapping):
        raise SpecError(f"{path} must be a group of options, got {values!r}")
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    for key in values:
        if key not in fields:
            raise SpecError(_unknown(path, str(key), list(fields)))
    hints = get_type_hints(cls)
    arguments = {}
    for name, field in fields.items():
        if name in values:
            arguments[name] = _value(hints[name], values[name], join(path, name), field.metadata)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise SpecError(f"{join(path, name)} must be given{_hint(field.metadata)}")
    return cls(**arguments)


def check(instance: Any, path: str) -> None:
    """Check the fields of an option group that was built directly, for its `__post_init__`.

    Raises:
        SpecError: as `read` does for the same value in a config; groups inside must be built.
    """
    hints = get_type_hints(type(instance))
    for field in dataclasses.fields(instance):
        if field.init:
            value = getattr(instance, field.name)
            _check_built(hints[field.name], value, join(path, field.name), field.metadata)


def _check_built(kind: Any, value: Any, path: str, limits: Mapping[str, Any]) -> None:
    """Check one field; what is a group in a config is an instance here, or a dict."""
    plain, is_optional = _without_none(kind)
    if value is None and is_optional:
        return
    is_list = get_origin(plain) is tuple and isinstance(value, (tuple, list))
    if is_list and dataclasses.is_dataclass(get_args(plain)[0]):
        for number, item in enumerate(value):
            _check_built(get_args(plain)[0], item, f"{path}[{number}]", limits)
    elif dataclasses.is_dataclass(plain):
        if not isinstance(value, plain):  # type: ignore[arg-type]  # a class, where fields have kinds
            raise SpecError(f"{path} must be {a_or_an(plain.__name__)}, got {value!r}")  # type: ignore[union-attr]
    elif (plain is Mapping or get_origin(plain) is Mapping) and not isinstance(value, Mapping):
        raise SpecError(f"{path} must be a dict of options, got {value!r}")
    else:
        _value(kind, value, path, limits)


@dataclasses.dataclass(frozen=True, slots=True)
class Declared:
    """An option as its dataclass declares it.

    Attributes:
        key: dotted.
        kind: its type, without None.
        is_optional: whether it may be None.
        field: of the dataclass.
        owner: the dataclass.
    """

    key: str
    kind: Any
    is_optional: bool
    field: "dataclasses.Field[Any]"
    owner: type[Any]

    @property
    def is_group(self) -> bool:
        """Whether it is a group of options, which are declared, too."""
        return dataclasses.is_dataclass(self.kind)

    @property
    def choices(self) -> tuple[Any, ...]:
        """Values that it may have, where they are a fixed set; an empty tuple otherwise."""
        if get_origin(self.kind) is Literal:
            return get_args(self.kind)
        return tuple(self.field.metadata.get("choices", ()))


def declared(cls: type[Any], path: str = "") -> Iterator[Declared]:
    """Every option of a dataclass and of the groups inside it; items of lists are not entered.

    Args:
        cls: dataclass of fields made by `option`.
        path: dotted key of the group.

    >>> from qat.spec.quant import QuantSpec
    >>> [o.choices for o in declared(QuantSpec) if o.key == "weight.granularity"]
    [('tensor', 'channel')]
    """
    hints = get_type_hints(cls)
    for field in dataclasses.fields(cls):
        kind, is_optional = _without_none(hints[field.name])
        found = Declared(join(path, field.name), kind, is_optional, field, cls)
        yield found
        if found.is_group:
            yield from declared(kind, found.key)


def _without_none(kind: Any) -> tuple[Any, bool]:
    """A type without None, and whether None belonged to it."""
    if get_origin(kind) not in (Union, types.UnionType):
        return kind, False
    arguments = get_args(kind)
    return next(a for a in arguments if a is not type(None)), type(None) in arguments


def _unknown(path: str, key: str, known: list[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    mean = f"; did you mean {join(path, close[0])}?" if close else ""
    return f"{join(path, key)} is not an option{mean} (options: {', '.join(known)})"


def _value(kind: Any, value: object, path: str, limits: Mapping[str, Any]) -> Any:
    kind, is_optional = _without_none(kind)
    if value is None and is_optional:
        return None
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return _choice(arguments, value, path, limits)
    if origin is tuple:
        return _items(arguments[0], value, path, limits)
    if dataclasses.is_dataclass(kind):
        return read(kind, value, path)  # type: ignore[arg-type]
    if kind in (dict, Mapping) or origin in (dict, Mapping):
        return _group(value, path)
    if limits.get("choices"):
        return _choice(limits["choices"], value, path, limits)
    return _plain(kind, value, path, limits)


def _group(value: object, path: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise SpecError(f"{path} must be a group of options, got {value!r}")
    return dict(value)


# as YAML reads on and off
_WORDS = {True: "on", False: "off"}


def _choice(allowed: tuple[Any, ...], value: object, path: str, limits: Mapping[str, Any]) -> Any:
    if isinstance(value, bool) and _WORDS[value] in allowed:
        value = _WORDS[value]
    # in Python True == 1 and 2.0 == 2: neither `bits=true` nor `bits=2.0` must pass
    if any(type(value) is type(choice) and value == choice for choice in allowed):
        return value
    names = ", ".join(str(a) for a in allowed)
    raise SpecError(f"{path} must be one of {names}; got {value!r}{_hint(limits)}")


def _items(kind: Any, value: object, path: str, limits: Mapping[str, Any]) -> tuple[Any, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise SpecError(f"{path} must be a list, got {value!r}")
    return tuple(_value(kind, item, f"{path}[{i}]", limits) for i, item in enumerate(value))


def _plain(kind: Any, value: object, path: str, limits: Mapping[str, Any]) -> Any:
    names = {int: "an integer", float: "a number", bool: "true or false", str: "a text"}
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    fits = {
        int: is_number and isinstance(value, int),
        float: is_number,
        bool: isinstance(value, bool),
        str: isinstance(value, str),
    }[kind]
    wanted = names[kind] + _range(limits)
    if not fits or (is_number and not _inside(value, limits)):  # type: ignore[arg-type]
        raise SpecError(f"{path} must be {wanted}; got {value!r}{_hint(limits)}")
    return kind(value)


def _inside(number: float, limits: Mapping[str, Any]) -> bool:
    low, high = limits.get("low"), limits.get("high")
    above, below = limits.get("above"), limits.get("below")
    return (
        abs(number) <= sys.float_info.max  # false for NaN; an integer may be too large for float()
        and (low is None or number >= low)
        and (high is None or number <= high)
        and (above is None or number > above)
        and (below is None or number < below)
    )


def _range(limits: Mapping[str, Any]) -> str:
    words = {"above": ">", "low": ">=", "below": "<", "high": "<="}
    parts = [f"{sign} {limits[k]}" for k, sign in words.items() if limits.get(k) is not None]
    return f" {' and '.join(parts)}" if parts else ""


def _hint(limits: Mapping[str, Any]) -> str:
    return f"; {limits['hint']}" if limits.get("hint") else ""
