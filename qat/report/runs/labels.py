"""Config labels, short: what sets each apart from the others, and nothing else."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from qat.report.runs.runs import Run

_LONGEST = 40
_MISSING = object()
_LEFT_OUT = "none"
# last words of keys that mean nothing without the one before
_VAGUE = {"epochs", "name", "bits", "kind", "method", "final", "initial", "_target_"}
# sections whose file name speaks for itself
_BARE = ("quant", "data", "model")


def labels_of(runs: Sequence[Run]) -> list[str]:
    """One label per run, all different.

    A config group is told by the name of its file (bcgd_w1a4) where these differ, and by the keys
    that the name does not explain: set on the command line, or different under an equal name.

    Args:
        runs: one per group, each config without what does not count.
    """
    differing = _differing([run.config for run in runs])
    names = [quant_name(run) for run in runs]
    sections = list(dict.fromkeys(["quant", *(section(key) for key in differing)]))
    parts: list[list[str]] = [[] for _ in runs]
    for own in sections:
        files = names if own == "quant" else [_file(run, own) for run in runs]
        keys = [key for key in differing if section(key) == own]
        for index, run in enumerate(runs):
            parts[index] += _parts(index, run, runs, files, own=own, keys=keys, among=differing)
    return _numbered([" ".join(own) or name for own, name in zip(parts, names, strict=True)])


def differences(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """What sets each config apart from the others, all different unless there is one.

    >>> differences([{"data.seed": 1, "data.a": 2}, {"data.seed": 3, "data.a": 2}])
    ['seed=1', 'seed=3']
    """
    keys = _differing(configs)
    parts = [[f"{_short(k, keys)}={shown(c[k])}" for k in keys if k in c] for c in configs]
    return _numbered([", ".join(own) for own in parts])


def quant_name(run: Run) -> str:
    """The peer's name, the file of conf/quant, or what the options amount to in that form."""
    config = run.config
    if "peer.name" in config:
        return shown(config["peer.name"])
    if "quant" in run.choices:
        return shown(run.choices["quant"])
    bits = config.get("quant.weight.bits"), config.get("quant.activation.bits")
    if bits == (32, 32):
        return "float"
    method = config.get("quant.weight.method", "update")
    rule = config.get("quant.rule.name", "run") if method == "update" else method
    return shown(f"{rule}_w{bits[0]}a{bits[1]}")


def section(key: str) -> str:
    """The config group of a dotted key; a peer stands where quantization stands."""
    first = key.partition(".")[0]
    return "quant" if first == "peer" else first


def shown(value: Any) -> str:
    """A value of a config as short text.

    >>> shown(1e-05), shown(None), shown("runs/a/b.ckpt"), shown([1, 2])
    ('1e-05', 'null', 'b.ckpt', '[1, 2]')
    """
    if isinstance(value, float):
        return f"{value:g}"
    text = value.rpartition("/")[2] if isinstance(value, str) else json.dumps(value, default=str)
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


def sort_key(label: str) -> list[tuple[int, float, str]]:
    """Sorts labels with the numbers in them by size: rho=1e-06 before rho=0.01 before rho=0.1."""
    found = re.split(r"(?<![\w.])(\d+(?:\.\d+)?(?:e[+-]?\d+)?)", label)
    return [
        (0, float(part), "") if index % 2 else (1, 0.0, part) for index, part in enumerate(found)
    ]


def _parts(
    index: int,
    run: Run,
    runs: Sequence[Run],
    files: Sequence[str | None],
    *,
    own: str,
    keys: Sequence[str],
    among: Sequence[str],
) -> list[str]:
    """What the label of run `index` says about the config group `own`."""
    known = None not in files
    parts = []
    if known and len(set(files)) > 1 and files[index] != _LEFT_OUT:
        file = shown(files[index])
        parts.append(file if own in _BARE else f"{own}={file}")
    namesakes = [other for other, file in zip(runs, files, strict=True) if file == files[index]]
    plain = _plain(namesakes, own) if known else None
    for key in keys:
        if plain is not None and run.config.get(key, _MISSING) == plain.config.get(key, _MISSING):
            continue  # what the file alone gives needs no word
        is_told = known and not _differing([other.config for other in namesakes], only=key)
        is_set = key in run.changed or any(c.startswith(f"{own}/") for c in run.changed)
        if key in run.config and key != "peer.name" and (is_set or not is_told):
            parts.append(f"{_short(key, among)}={shown(run.config[key])}")
    return parts


def _plain(runs: Sequence[Run], own: str) -> Run | None:
    """A run that took the config group as its file has it; None if there is none."""
    for run in runs:
        if not any("." in key and section(key) == own for key in run.changed):
            return run
    return None


def _numbered(labels: Sequence[str]) -> list[str]:
    return [
        label if label not in labels[:index] else f"{label} #{labels[:index].count(label) + 1}"
        for index, label in enumerate(labels)
    ]


def _file(run: Run, own: str) -> str | None:
    """The file of a config group; one that a config leaves out altogether is known, too."""
    if all(
        (key != own and not key.startswith(f"{own}.")) or v is None for key, v in run.config.items()
    ):
        return _LEFT_OUT
    return run.choices.get(own)


def _differing(configs: Sequence[Mapping[str, Any]], *, only: str | None = None) -> list[str]:
    """Keys whose values are not equal in all configs, or that some of them lack."""
    keys = dict.fromkeys(key for config in configs for key in config) if only is None else [only]
    return [
        key
        for key in keys
        if any(c.get(key, _MISSING) != configs[0].get(key, _MISSING) for c in configs)
    ]


def _short(key: str, among: Sequence[str]) -> str:
    """The last word of a dotted key, with the one before where another key ends on the same."""
    words = key.split(".")
    alike = [other for other in among if other.split(".")[-1] == words[-1]]
    return words[-1] if len(alike) == 1 and words[-1] not in _VAGUE else ".".join(words[-2:])
