"""Error messages of Hydra about wrong overrides, as one line."""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path

from hydra import compose
from hydra.errors import OverrideParseException

from qat.compose.session import composing, options_of, plain
from qat.spec.keys import at, flat, join
from qat.spec.overrides import quoted


def explained(error: Exception, conf: Path, overrides: Sequence[str]) -> str:
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
        whole = plain(compose("config", chosen))
    group = name.partition(".")[0]
    if (conf / group).is_dir() and whole.get(group) is None:
        return f"{name} needs {group}=<option> beside it, one of {_options(conf / group)}"
    parent = name.rpartition(".")[0]
    node = at(whole, parent) if parent else whole
    if not isinstance(node, dict):
        return f"{name} is not an option"
    known = list(node)
    last = name.rpartition(".")[2]
    close = [join(parent, key) for key in difflib.get_close_matches(last, known, n=1)]
    # or it is the last part of a key, as lr of optimizer.lr, or nearly
    every = {key: key.rpartition(".")[2] for key in flat(whole)}
    alike = difflib.get_close_matches(last, {*every.values()} - {last}, n=1, cutoff=0.7)
    close = close or [key for key, end in every.items() if end in (last, *alike)]
    mean = f"; did you mean {' or '.join(close[:3])}?" if close else ""
    return f"{name} is not an option{mean} (options: {', '.join(known)})"


def _options(folder: Path) -> str:
    return ", ".join(options_of(folder))
