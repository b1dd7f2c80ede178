"""Identity of a run, but for its seed and folders: its group, its test part, where it started."""

import hashlib
import json
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from qat.report.runs.runs import Run, read_run
from qat.spec.data import images_by
from qat.spec.numbers import is_as_before, moves_nothing
from qat.spec.targets import first_name

# a run's seed, and its threads, which move the last bits only
_IGNORED = {"seed", "training.threads"}
_IGNORED_SECTIONS = {"hydra", "sweep"}
# keys that may name a run folder; two folders of equal configs are the same start
ORIGINS = ("init_from", "distill.teacher")
# a start has a start of its own; a chain as long as this is no one's
_LONGEST_CHAIN = 16
_ALL_BATCHES = 1.0


def identities_of(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """What determines the numbers of each run, but for its seed.

    A start is told by its config, so that each seed may have its own. Where its folder is gone, it
    is told by its path without the run's seed, unless runs of several seeds start from it.

    Args:
        runs: with a config each.
    """
    seeds: dict[str, set[int]] = {}
    for run in runs:
        for key in ORIGINS:
            seeds.setdefault(str(run.config.get(key)), set()).add(run.seed)
    shared = {path for path, own in seeds.items() if len(own) > 1}
    return [_identity(run, shared) for run in runs]


def hashed(identity: Mapping[str, Any]) -> str:
    """16 hex digits that stand for an identity."""
    text = json.dumps(identity, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]


def title_of(config: Mapping[str, Any]) -> str:
    """Data and network in words."""
    target = str(config.get("model._target_", "network")).rpartition(".")[2]
    return f"{config.get('data.name', 'data')}, {config.get('model.name', target)}"


def judged_on(config: Mapping[str, Any]) -> dict[str, Any]:
    """The keys beside the data's name that decide which test images there are.

    Those that every data set has, as data.image_size, are none of them: they show the same images
    in another size.
    """
    images = tuple(f"data.{option}" for option in images_by(config.get("data.name")))
    own = {
        key: value
        for key, value in config.items()
        if key.startswith(tuple(f"{option}." for option in images)) or key in images
        if not moves_nothing(key) and not is_as_before(key, value)
    }
    share = config.get("trainer.limit_test_batches", _ALL_BATCHES)
    # 1 is one batch, 1.0 are all of them
    if share is not None and repr(share) != repr(_ALL_BATCHES):
        own["trainer.limit_test_batches"] = share
        own |= {key: config[key] for key in ("data.batch_size",) if key in config}
    return own


def _identity(
    run: Run, shared: Collection[str], seen: frozenset[Path] = frozenset()
) -> dict[str, Any]:
    config = {
        key: first_name(value) if key.endswith("_target_") else value
        for key, value in run.config.items()
        if key not in _IGNORED
        and not moves_nothing(key)
        and not is_as_before(key, value)
        and key.partition(".")[0] not in _IGNORED_SECTIONS
    }
    if "root" not in images_by(config.get("data.name")):  # the name says what the images are
        config.pop("data.root", None)
    for key in ORIGINS:
        if config.get(key) is not None:
            path = str(config[key])
            gone = path if seen or path in shared else _without_seed(path, run.seed)
            config[key] = _origin(path, seen) or gone
    return config


def _origin(path: str, seen: frozenset[Path]) -> str | None:
    """A run folder, or a file in one, by its config; None if it cannot be read."""
    for folder in (Path(path), *Path(path).parents[:3]):
        if _is_run(folder):
            place = folder.resolve()
            # a run that starts from itself, by way of others or not, has no start to tell
            if place in seen or len(seen) >= _LONGEST_CHAIN:
                return None
            source = read_run(folder)
            if not source.config:
                return None
            own = hashed(_identity(source, (), seen | {place}))
            return f"{source.choices.get('quant', 'run')}-{own[:6]}"
    return None


def _is_run(folder: Path) -> bool:
    try:
        return (folder / ".hydra" / "config.yaml").is_file()
    except OSError:  # a path too long for the system, or in a folder that may not be read
        return False


def _without_seed(path: str, seed: int) -> str:
    """A path with the seed, where it is a word of its own, left open.

    >>> _without_seed("runs/float_0.1_1/step=1.ckpt", 1)
    'runs/float_0.1_{seed}/step=1.ckpt'
    """
    word = rf"(?<![0-9A-Za-z.])(?<!step=)(?<!epoch=){seed}(?![0-9A-Za-z]|\.[0-9])"
    return path if seed < 0 else re.sub(word, "{seed}", path)
