"""Reproduction commands: how the runs of a group are made again, wherever they are given."""

import shlex
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from qat.errors import CheckpointError
from qat.report.runs.identity import ORIGINS
from qat.report.runs.runs import Run
from qat.spec.overrides import unquoted
from qat.storage.run_files import read_overrides

# overrides that say where and how often, not what
_ELSEWHERE = ("hydra.", "callbacks.", "logger", "resume", "folder=", "data.root=")
_SEED = "$SEED"


def recipe(runs: Sequence[Run]) -> list[str]:
    """Lines of a shell; runs that start from others are preceded by the commands of these.

    Folders of this machine are told by their last name, which the lines also make. Where seeds
    differ in more than the seed, as by a start of their own, the lines are a loop.

    Args:
        runs: of one group, one per seed.
    """
    before = {run.seed: _before(run) for run in runs}
    own = _alike({run.seed: _own(run) for run in runs})
    if len(runs) == 1:
        return [*before[runs[0].seed], own[runs[0].seed]]
    shared = before[runs[0].seed]
    bare = {line.replace(f" seed={seed}", "") for seed, line in own.items()}
    if all(lines == shared for lines in before.values()) and len(bare) == 1:
        return [*shared, _swept(bare.pop(), list(own))]
    general = {tuple(_general(line, seed) for line in (*before[seed], own[seed])) for seed in own}
    if len(general) == 1:
        return [f"for SEED in {' '.join(map(str, own))}; do {'; '.join(general.pop())}; done"]
    return [line for seed in own for line in (*before[seed], own[seed])]


def _alike(lines: dict[int, str]) -> dict[int, str]:
    """The lines of a group's seeds with equal words in the first one's order."""

    def words(seed: int, line: str) -> list[str]:
        return sorted(line.replace(f" seed={seed}", "").split())

    first_seed, first = next(iter(lines.items()))
    return {
        seed: first.replace(f" seed={first_seed}", f" seed={seed}")
        if words(seed, line) == words(first_seed, first)
        else line
        for seed, line in lines.items()
    }


def _own(run: Run) -> str:
    own = _told(run.folder)
    if not any(o.startswith("seed=") for o in own):
        own.append(f"seed={run.seed}")
    if "peer.name" in run.config:
        own = [o for o in own if o != "quant=float"]
        named = [f"method={run.config['peer.name']}", "folder=runs/peers"]
        return f"python scripts/peers.py {_joined([*named, *own])}"
    return f"python train.py {_joined(own)}"


def _before(run: Run) -> list[str]:
    """The commands of the runs that a run starts from."""
    origins = [value for key, value in map(_split, _overrides(run.folder)) if key in ORIGINS]
    return [line for value in origins for line in _origin(Path(value))]


def _origin(folder: Path) -> list[str]:
    """The command that makes a run which another one starts from, if its folder is still there."""
    own = _told(folder)
    return [f"python train.py {_joined([*own, f'hydra.run.dir={folder.name}'])}"] if own else []


def _told(folder: Path) -> list[str]:
    """What a run's command said of what it is, wherever it is given."""
    overrides = _overrides(folder)
    return [_portable(o) for o in overrides if not o.lstrip("+~").startswith(_ELSEWHERE)]


def _overrides(folder: Path) -> list[str]:
    """What the command of a run said; nothing if its folder is gone or damaged."""
    with suppress(CheckpointError):
        return read_overrides(folder)
    return []


def _swept(line: str, seeds: Sequence[int]) -> str:
    listed = f"seed={','.join(map(str, seeds))}"
    many = line.replace("python train.py", "python train.py -m", 1)
    return f"{many} {listed}"


def _general(line: str, seed: int) -> str:
    """A line of one seed as the line of any: the seed, and names that end on it."""
    words = shlex.split(line)
    general = [
        word[: -len(str(seed))] + _SEED
        if word == f"seed={seed}" or word.endswith(f"_{seed}")
        else word
        for word in words
    ]
    return " ".join(word if _SEED in word else shlex.quote(word) for word in general)


def _portable(override: str) -> str:
    """An override without where a file lies on this machine; its name stays."""
    key, value = _split(override)
    return f"{key}={Path(value).name}" if Path(value).is_absolute() else override


def _split(override: str) -> tuple[str, str]:
    key, _, value = override.partition("=")
    return key, unquoted(value)


def _joined(words: Sequence[str]) -> str:
    return " ".join(map(shlex.quote, words))
