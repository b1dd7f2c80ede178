"""Run-folder files as plain values; what is damaged or strange becomes one reason."""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from qat.errors import CheckpointError
from qat.spec.keys import entries, flat
from qat.storage.reading import is_there, parsing, read_regular

# real configs have some hundred values; a file that unfolds into more is not one of ours
_MAX_VALUES, _MAX_DEPTH = 10_000, 30
# of files that are read whole before their values are counted; YAML takes 6 s for a megabyte
_MAX_YAML, _MAX_JSON = 500_000, 50_000_000
_CURE = "restore the file, or use another run"
_MAX_DIGITS = 100
_NUMBER = re.compile(r"[-+]?[0-9][0-9a-fA-FxXoO_:.+-]*")
_LOOKED_UP = re.compile(r"\$\\*\{")  # ${...}, and what unescaping would make of it


def flattened(config: Mapping[str, Any]) -> dict[str, Any]:
    """Nested groups as dotted keys; an empty group keeps its name.

    >>> flattened({"quant": {"rule": {"rho": 0.1}}, "logger": {}})
    {'quant.rule.rho': 0.1, 'logger': None}

    Raises:
        CheckpointError: more values or levels than a config has.
    """
    check_size(config)
    return {key: None if value == {} else value for key, value in flat(config).items() if key}


def check_size(content: object, file: str = "config.yaml") -> None:
    """Refuse what a few aliases of YAML can unfold into, before anything walks through it."""
    waiting: list[tuple[Any, int]] = [(content, 0)]
    count = 0
    while waiting:
        node, depth = waiting.pop()
        count += 1
        if count > _MAX_VALUES or depth > _MAX_DEPTH:
            raise CheckpointError(_too_large(file))
        inner = node.values() if isinstance(node, Mapping) else node
        waiting += [(child, depth + 1) for child in inner] if _is_group(node) else []


def _is_group(node: object) -> bool:
    return isinstance(node, (Mapping, list, tuple, set))


def read_config(folder: Path) -> dict[str, Any]:
    """The config that a run recorded, in RUN/.hydra/config.yaml, as plain values.

    It is data: nothing in it is looked up, in the environment or elsewhere.

    Raises:
        CheckpointError: it is missing, damaged, larger than any config, or holds an interpolation.
    """
    config = read_yaml(folder / ".hydra" / "config.yaml")
    check_size(config)  # before it is walked
    for key, _, value in entries(config):
        text = "" if _is_group(value) else str(value)
        if _LOOKED_UP.search(f"{key} {text}"):
            raise CheckpointError(
                f"config.yaml holds {key}={text:.80}, which would be looked up; write its value"
            )
    return config


def read_overrides(folder: Path) -> list[str]:
    """What the command of a run said; nothing if its folder does not tell.

    Raises:
        CheckpointError: the file is damaged.
    """
    path = folder / ".hydra" / "overrides.yaml"
    lines = _yaml(path) if is_there(path) else []
    check_size(lines, path.name)  # before str(), which unfolds aliases
    return [str(line) for line in lines] if isinstance(lines, list) else []


def read_yaml(path: Path) -> dict[str, Any]:
    """Keys and values of a YAML file.

    Raises:
        CheckpointError: it is missing, damaged, or holds something else.
    """
    content = _yaml(path)
    if not isinstance(content, dict):
        raise CheckpointError(f"{path.name} holds no keys and values")
    return content


def _yaml(path: Path) -> Any:
    import yaml

    # the loader in C is ten times faster where PyYAML was built with it
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    content = read_regular(path, path.name, most=_MAX_YAML)
    with parsing(path.name, _CURE):
        _check_events(yaml.parse(content, Loader=loader), path.name)
        return yaml.load(content, Loader=loader)


def _check_events(events: Iterable[Any], file: str) -> None:
    """Refuse before it is built what would be large: deep nesting, merged keys, long numbers.

    The builder recurses in C until the stack is gone; merging doubles with each line that merges
    the one before twice; and 1:59:59:... is a number of any size in YAML.
    """
    import yaml

    depth = 0
    for event in events:
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > _MAX_DEPTH:
            raise CheckpointError(_too_large(file))
        if isinstance(event, yaml.ScalarEvent) and event.implicit[0]:
            if event.value == "<<":
                raise CheckpointError(
                    f"{file} merges keys by <<, which is not read; write them out"
                )
            if len(event.value) > _MAX_DIGITS and _NUMBER.fullmatch(event.value):
                raise CheckpointError(f"{file} holds a number of {len(event.value):,} digits")


def _too_large(file: str) -> str:
    return f"{file} holds more than {_MAX_VALUES} values or {_MAX_DEPTH} levels, as no config does"


def read_json(path: Path) -> dict[str, Any]:
    """Keys and values of a JSON file.

    Raises:
        CheckpointError: it is missing, damaged, or holds something else.
    """
    with parsing(path.name, _CURE):
        content = json.loads(read_regular(path, path.name, most=_MAX_JSON).decode("utf-8"))
    if not isinstance(content, dict):
        raise CheckpointError(f"{path.name} holds no keys and values")
    return content
