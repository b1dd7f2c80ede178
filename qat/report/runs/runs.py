"""Run records as they lie on disk; a damaged file becomes a reason, never an error."""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qat.errors import CheckpointError
from qat.spec.targets import name_of_now
from qat.storage.csv_table import read_rows
from qat.storage.reading import is_there
from qat.storage.run_files import check_size, flattened, read_json, read_overrides, read_yaml


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Run:
    """What a run folder holds.

    Attributes:
        folder: resolved.
        name: of the folder, as seen from the path it was found under.
        state: of status.json, or "unreadable".
        error: of status.json, or why the folder cannot be read; None if all is well.
        config: resolved config, flattened to dotted keys; lists stay lists.
        choices: config group -> name of its file, e.g. quant -> bcgd_w1a4.
        changed: keys that the command line has set.
        summary: content of summary.json; None before the end of the run.
        written: when summary.json was written, seconds since the epoch; 0 without one.
    """

    folder: Path
    name: str
    state: str
    error: str | None
    config: Mapping[str, Any]
    choices: Mapping[str, str]
    changed: frozenset[str]
    summary: Mapping[str, Any] | None
    written: float = 0.0

    @property
    def is_finished(self) -> bool:
        """Whether the run has come to its end and left its numbers."""
        return self.state == "finished" and self.summary is not None

    @property
    def seed(self) -> int:
        """Seed of the run, -1 if its config does not tell."""
        seed = self.config.get("seed")
        return seed if isinstance(seed, int) else -1

    def value(self, *keys: str) -> Any:
        """What summary.json holds under these keys, e.g. ("last", "confusion"), or None."""
        node: Any = self.summary
        for key in keys:
            node = node.get(key) if isinstance(node, Mapping) else None
        return node

    def number(self, *keys: str) -> float | None:
        """A finite number of summary.json, e.g. ("last", "test_acc"), or None."""
        return finite(self.value(*keys))

    def rows(self, file: str = "metrics.csv") -> list[dict[str, str]]:
        """Rows of a table in the run folder, read now; none if it is missing or damaged."""
        return read_rows(self.folder / file)


def read_runs(paths: Sequence[str | Path]) -> list[Run]:
    """Every run in the folders, each once, sorted by path within each of them.

    Args:
        paths: run folders, or folders somewhere above run folders.
    """
    found: dict[Path, Run] = {}
    for path in map(Path, paths):
        for folder in sorted(_run_folders(path)):
            resolved = folder.resolve()
            if resolved not in found:
                name = (Path(path.resolve().name) / folder.relative_to(path)).as_posix()
                found[resolved] = read_run(folder, name=name)
    return list(found.values())


def read_run(folder: Path, *, name: str | None = None) -> Run:
    """The run in one folder, of the state "unreadable" if its files do not tell.

    Args:
        folder: run folder.
        name: shown in tables; None for the folder's own.
    """
    state, error, summary = "unreadable", None, None
    config: dict[str, Any] = {}
    choices: dict[str, str] = {}
    changed: frozenset[str] = frozenset()
    written = 0.0
    try:
        config = _named(flattened(read_yaml(folder / ".hydra" / "config.yaml")))
        choices, changed = read_command(folder, config)
        if not is_there(folder / "status.json"):
            raise CheckpointError("status.json is missing: the run begins now, or was killed then")
        status = read_json(folder / "status.json")
        if is_there(folder / "summary.json"):
            summary = read_json(folder / "summary.json")
            written = (folder / "summary.json").stat().st_mtime
        state, error = _text(status.get("state")), status.get("error")
        if state == "finished" and summary is None:
            state, error = "unreadable", "summary.json is missing"
    except (CheckpointError, OSError) as problem:
        error = str(problem)
    return Run(
        folder=folder.resolve(),
        name=folder.resolve().name if name is None else name,
        state=state,
        error=None if error is None else _text(error),
        config=config,
        choices=choices,
        changed=changed,
        summary=summary,
        written=written,
    )


def finite(value: object) -> float | None:
    """A number as a finite float; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _run_folders(path: Path) -> Iterator[Path]:
    for place, folders, files in os.walk(path):
        # not is_file(): that fails where .hydra may not be entered
        if "status.json" in files or os.path.isfile(Path(place) / ".hydra" / "config.yaml"):
            folders.clear()  # a run folder holds no other runs
            yield Path(place)


def _text(value: object) -> str:
    return " ".join(str(value).split())


def _named(config: Mapping[str, Any]) -> dict[str, Any]:
    """A flattened config whose `_target_`s have the names of today, whatever version it is of."""
    return {k: name_of_now(v) if k.endswith("_target_") else v for k, v in config.items()}


def read_command(folder: Path, config: Mapping[str, Any]) -> tuple[dict[str, str], frozenset[str]]:
    """Names of the config files of each group, and the keys that the command line has set.

    Args:
        folder: run folder.
        config: flattened.

    Raises:
        CheckpointError: a file is damaged.
    """
    choices: dict[str, str] = {}
    if is_there(folder / ".hydra" / "hydra.yaml"):
        node: Any = read_yaml(folder / ".hydra" / "hydra.yaml")
        check_size(node, "hydra.yaml")
        for key in ("hydra", "runtime", "choices"):
            node = node.get(key) if isinstance(node, Mapping) else None
        known = node if isinstance(node, Mapping) else {}
        choices = {str(k): str(v) for k, v in known.items() if v is not None}
    changed = set()
    for key, _, value in (o.lstrip("+~").partition("=") for o in read_overrides(folder)):
        changed.add(key)
        if any(name.startswith(f"{key}.") for name in config):
            choices[key] = value
    return choices, frozenset(changed)
