"""Run-folder files as plain values; what is damaged or strange becomes one reason."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qat.errors import CheckpointError
from qat.spec.keys import entries, flat

# real configs have some hundred values; a file that unfolds into more is not one of ours
_MAX_VALUES, _MAX_DEPTH = 10_000, 30
# of files that are read whole before their values are counted; YAML takes 6 s for a megabyte
_MAX_YAML, _MAX_JSON = 500_000, 50_000_000
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
            raise CheckpointError(
                f"{file} holds more than {_MAX_VALUES} values or {_MAX_DEPTH} levels, as no "
                "config does"
            )
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


def is_there(path: Path) -> bool:
    """Whether there is a file to read.

    Raises:
        CheckpointError: something else has its name, as a pipe, which would never end.
    """
    try:
        if path.is_file() or not path.exists():
            return path.is_file()
    except OSError as error:
        raise CheckpointError(f"{path.name} cannot be read: {error.strerror}") from None
    raise CheckpointError(f"{path.name} cannot be read: it is no regular file")


def _bytes(path: Path, most: int) -> bytes:
    if not is_there(path):
        raise CheckpointError(f"{path.name} is missing")
    try:
        with path.open("rb") as file:
            content = file.read(most + 1)
    except OSError as error:
        raise CheckpointError(f"{path.name} cannot be read: {error.strerror or error}") from None
    if len(content) > most:
        raise CheckpointError(f"{path.name} has more than {most:,} bytes, as none of ours has")
    return content


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
    content = _bytes(path, _MAX_YAML)
    try:
        return yaml.load(content, Loader=loader)
    except (ValueError, TypeError, RecursionError, yaml.YAMLError) as error:
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"{path.name} cannot be read: {reason}") from None


def read_json(path: Path) -> dict[str, Any]:
    """Keys and values of a JSON file.

    Raises:
        CheckpointError: it is missing, damaged, or holds something else.
    """
    text = _bytes(path, _MAX_JSON)
    try:
        content = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path.name} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path.name} holds no keys and values")
    return content
