"""Config of a run folder, kept in .hydra/: written, opened as data, resumed."""

import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from qat.compose.errors import one_line
from qat.compose.session import composing, options_of, plain
from qat.errors import CheckpointError, SpecError
from qat.spec.check import typed
from qat.spec.numbers import moves_nothing
from qat.spec.overrides import differences, quoted
from qat.spec.run import RunSpec
from qat.spec.targets import with_names_of_now
from qat.storage.atomic import write_whole
from qat.storage.run_files import read_config, read_overrides

_ABSENT = object()


@dataclass(frozen=True, slots=True)
class Resumed:
    """An interrupted run that is to go on.

    Attributes:
        overrides: the run's own and the command's, for what Hydra itself composes.
        config: the run's own, as it was saved, with what the command changes; plain values.
    """

    overrides: list[str]
    config: dict[str, Any]


def resumed(conf: Path, overrides: Sequence[str]) -> Resumed | None:
    """The run that `resume=FOLDER` names, opened from its own saved config; None without one.

    What the command changes is what it makes of the run's overrides, so an option that `conf` has
    got since, or whose default there is another now, stays as it was in the run.

    Args:
        conf: folder of the config.
        overrides: of the command.

    Raises:
        CheckpointError: the folder is none of a run, or damaged.
        SpecError: an override is wrong, or changes what enters the numbers without
            `resume_allow=[KEY]`.
    """
    named = [o for o in overrides if o.lstrip("+").startswith("resume=")]
    folder = Path(named[-1].partition("=")[2].strip("\"'") if named else "null")
    if str(folder) in ("null", "."):
        return None
    before = with_names_of_now(saved_config(folder, "resume"))
    earlier, base = _as_composed_now(conf, folder)
    try:
        with composing(conf):
            now = with_names_of_now(plain(compose("config", [*earlier, *overrides])))
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise SpecError(one_line(error, conf, overrides)) from None
    changes = _changes(base, now)
    _check_changes(folder, before, changes, now.get("resume_allow") or ())
    own = [f"hydra.run.dir={quoted(str(folder))}", "hydra.output_subdir=null"]
    config = _changed(before, changes) | {"allow_targets": now["allow_targets"]}
    return Resumed([*earlier, *overrides, *own], config)


def saved_config(folder: Path, key: str) -> dict[str, Any]:
    """The config that a run recorded, without what it says of itself being called or resumed.

    Args:
        folder: run folder.
        key: what named the folder, for messages.

    Raises:
        CheckpointError: the folder is none of a run, or the file is damaged.
    """
    path = folder / ".hydra" / "config.yaml"
    if not path.exists():
        raise CheckpointError(
            f"{key}={folder} is no run folder: {path} does not exist; give runs/DATE/TIME"
        )
    try:
        config = read_config(folder)
    except CheckpointError as error:
        raise CheckpointError(f"{key}={folder}: {error}") from None
    own = ("allow_targets", "resume", "resume_allow", "hydra")
    return {name: value for name, value in config.items() if name not in own}


def opened(folder: Path, *, allow_targets: Sequence[str] = (), key: str = "resume") -> RunSpec:
    """The options of a finished or interrupted run, from its own saved config.

    What the file lacks has its default. A folder may come from anyone: its `_target_`s are held
    against what qat itself calls, and its own `allow_targets` is not heard.

    Args:
        folder: run folder.
        allow_targets: further prefixes that a `_target_` may start with.
        key: what named the folder, for messages.

    Raises:
        CheckpointError: the folder is none of a run, or its config is none that this qat reads.
    """
    config = saved_config(folder, key)
    try:
        return typed(config, allow_targets)
    except SpecError as error:
        raise CheckpointError(
            f"{key}={folder} is a run that this qat does not open: {error}"
        ) from None


def _as_composed_now(conf: Path, folder: Path) -> tuple[list[str], dict[str, Any]]:
    """A run's overrides and what `conf` makes of them; none where it knows them no more."""
    try:
        earlier = _of_a_run(read_overrides(folder), str(folder))
        with composing(conf):
            return earlier, with_names_of_now(plain(compose("config", earlier)))
    except (HydraException, OmegaConfBaseException, ValueError):
        with composing(conf):
            return [], with_names_of_now(plain(compose("config")))


def _changes(base: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys that differ, with their new values; `_ABSENT` for those that are gone."""
    before, after = _flat(base), _flat(now)
    return {
        key: after.get(key, _ABSENT)
        for key in sorted({*before, *after})
        if before.get(key, _ABSENT) != after.get(key, _ABSENT)
    }


def _changed(config: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A config with other values at some dotted keys."""
    changed = deepcopy(dict(config))
    for key, value in changes.items():
        *groups, name = key.split(".")
        node = changed
        for group in groups:
            inner = node.get(group)
            node[group] = inner if isinstance(inner, dict) else {}
            node = node[group]
        if value is _ABSENT:
            node.pop(name, None)
        else:
            node[name] = value
    return changed


def _check_changes(
    folder: Path, before: Mapping[str, Any], changes: Mapping[str, Any], allow: Sequence[str]
) -> None:
    """Refuse to resume with another config than the run's, unless the keys are allowed by name."""
    known = _flat(before)
    refused = [
        f"{key}: {known.get(key, 'absent')} -> {'absent' if value is _ABSENT else value}"
        for key, value in changes.items()
        if known.get(key, _ABSENT) != value
        and not moves_nothing(key)
        and not any(key == a or key.startswith(f"{a}.") for a in allow)
    ]
    if refused:
        keys = ",".join(line.partition(":")[0] for line in refused[:5])
        raise SpecError(
            f"resume={folder}: the config differs from the run's ({'; '.join(refused[:5])}); "
            f"leave it out, or allow it by resume_allow=[{keys}]"
        )


def _of_a_run(overrides: Sequence[str], folder: str) -> list[str]:
    """The overrides of a folder that tell what its run is.

    A folder may come from anyone: what it says of Hydra itself (which calls, sets the environment,
    searches folders) and of what may be called is not heard. The command line can say both again.
    """
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"resume={folder}: overrides.yaml cannot be read: {reason}") from None
    heard = []
    for override in parsed:
        places = (override.key_or_group, override.package or "")
        parts = {re.split("[./]", place)[0] for place in places}
        is_looked_up = "${" in str(override.input_line)
        if not is_looked_up and not parts & {"hydra", "_global_", "allow_targets"}:
            heard.append(str(override.input_line))
    return heard


def recorded(conf: Path, folder: Path, config: Mapping[str, Any]) -> None:
    """Write RUN/.hydra/ for a config that no command line gave, so that it can be recomposed.

    The overrides choose the options that come nearest, and say what then still differs.

    Raises:
        SpecError: the config cannot be composed from `conf`.
    """
    with composing(conf):
        choices = [
            f"{group}={_nearest(conf, group, config[group])}"
            for group, content in plain(compose("config")).items()
            if (conf / group).is_dir() and config[group] != content
        ]
        base = plain(compose("config", choices))
        overrides = [*choices, *differences(base, config)]
        try:
            composed = plain(compose("config", overrides))
        except (HydraException, OmegaConfBaseException) as error:
            raise SpecError(f"{folder}: {one_line(error, conf, overrides)}") from None
    if composed != config:
        raise SpecError(f"{folder}: this config cannot be composed from conf/")
    record(folder, overrides, config)


def record(folder: Path, overrides: Sequence[str], config: Mapping[str, Any]) -> None:
    """Write RUN/.hydra/ as Hydra does it for a run of its own."""
    hydra = folder / ".hydra"
    hydra.mkdir(parents=True, exist_ok=True)
    for name, content in (("overrides", list(overrides)), ("config", dict(config))):
        write_whole(hydra / f"{name}.yaml", OmegaConf.to_yaml(OmegaConf.create(content)))


def _nearest(conf: Path, group: str, wanted: Mapping[str, Any]) -> str:
    """The option of a group with the fewest differences from a content."""

    def distance(name: str) -> int:
        option = plain(compose("config", [f"{group}={name}"]))[group]
        return len(list(differences(option, wanted)))

    return min(options_of(conf / group), key=distance)


def _flat(node: Any, key: str = "") -> dict[str, Any]:
    if not isinstance(node, Mapping) or not node:
        return {key: node}
    flat: dict[str, Any] = {}
    for name, child in node.items():
        flat |= _flat(child, f"{key}.{name}" if key else str(name))
    return flat
