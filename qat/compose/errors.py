"""Error messages of Hydra about wrong overrides, as one line."""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import compose
from hydra.errors import OverrideParseException

from qat.compose.session import composing, options_of
from qat.spec.overrides import quoted


def one_line(error: Exception, conf: Path, overrides: Sequence[str]) -> str:
    """Hydra's message as one line that names key, value and what is allowed."""
    text = str(error.__cause__ or error) if "Error merging override" in str(error) else str(error)
    group = re.search(r"Could not find '([\w/]+)/([^/']+)'", text)
    if group:
        folder, name = group.groups()
        return f"{folder}={name} is unknown; {folder} is one of {_options(conf / folder)}"
    key = re.search(r"(?:Could not override|Key) '([^']+)'", text)
    if key and ("not in struct" in text or "Could not override" in text):
        return _unknown_key(error, key.group(1), conf, overrides)
    if "group override must be a string" in text:
        return "GROUP=null chooses no option of a group; leave it out (for distill: distill=none)"
    bare = re.search(r"Error parsing override '([^']*)'\s+missing EQUAL", text)
    if bare:
        return f"{bare.group(1)!r} must be key=value, e.g. seed=2; see --help"
    if isinstance(error, OverrideParseException):
        return _unreadable(error)
    lines = [line.strip() for line in text.splitlines()]
    return "; ".join(line for line in lines if line and not line.startswith("See http"))


def _unreadable(error: OverrideParseException) -> str:
    key, _, value = error.override.partition("=")
    reason = error.message.splitlines()[0].removesuffix(".")
    cure = f"; put quotes around a text: '{key}={quoted(value)}'" if value else ""
    return f"{error.override} cannot be read ({reason}){cure}"


def _unknown_key(error: Exception, key: str, conf: Path, overrides: Sequence[str]) -> str:
    full = re.search(r"full_key: (\S+)", f"{error}\n{error.__cause__}")
    name = full.group(1) if full else key
    chosen = [o for o in overrides if (conf / o.partition("=")[0].partition("@")[0]).is_dir()]
    with composing(conf):
        node: Any = compose("config", chosen)
    group = name.partition(".")[0]
    if (conf / group).is_dir() and node.get(group) is None:
        return f"{name} needs {group}=<option> beside it, one of {_options(conf / group)}"
    for part in name.split(".")[:-1]:
        node = node.get(part) if hasattr(node, "get") else None
    if not hasattr(node, "keys"):
        return f"{name} is not an option"
    known = [str(k) for k in node.keys()]  # noqa: SIM118  # a DictConfig
    parent = name.rpartition(".")[0]
    close = difflib.get_close_matches(name.rpartition(".")[2], known, n=1)
    mean = f"; did you mean {f'{parent}.{close[0]}'.lstrip('.')}?" if close else ""
    return f"{name} is not an option{mean} (options: {', '.join(known)})"


def _options(folder: Path) -> str:
    return ", ".join(options_of(folder))
