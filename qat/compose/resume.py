"""Resume: an interrupted run goes on by the config that it saved, with what the command changes.

A run folder may come from anyone. Its config is data, to which the words of the command are
applied; what its overrides.yaml says is never composed, so no word of a folder reaches Hydra.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from qat.compose.errors import explained
from qat.compose.run_folder import saved_config
from qat.compose.session import composing, plain
from qat.errors import SpecError
from qat.spec.keys import at, flat
from qat.spec.numbers import moves_nothing
from qat.spec.overrides import quoted, unquoted
from qat.spec.targets import check_places, with_names_of_now

_ABSENT = object()
# the order of samples and the batches are those of one process, whatever shares them
_ELASTIC = ("trainer.devices", "trainer.num_nodes", "trainer.strategy")


@dataclass(frozen=True, slots=True)
class Resumed:
    """An interrupted run that is to go on.

    Attributes:
        overrides: what Hydra itself is told: the command's words about it, and the run's folder.
        config: the run's own, as it was saved, with what the command changes; plain values.
    """

    overrides: list[str]
    config: dict[str, Any]


def resumed(conf: Path, overrides: Sequence[str]) -> Resumed | None:
    """The run that `resume=FOLDER` names, opened from its own saved config; None without one.

    An option that `conf` has got since, or whose default there is another now, stays as it was in
    the run. A group that the command names, as quant=NAME, counts with all of its keys, and so do
    the keys that an experiment sets.

    Args:
        conf: folder of the config.
        overrides: of the command.

    Raises:
        CheckpointError: the folder is none of a run, or damaged.
        SpecError: an override is wrong, or changes what enters the numbers without
            `resume_allow=[KEY]`; or the run's own config names a place for files.
    """
    named = [o for o in overrides if o.lstrip("+").startswith("resume=")]
    folder = Path(unquoted(named[-1].partition("=")[2]) if named else "null")
    if str(folder) in ("null", "."):
        return None
    before = with_names_of_now(saved_config(folder, "resume"))
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
        with composing(conf):
            base, now = _applied(conf, before, [o for o in parsed if not _is_of_hydra(o)])
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise SpecError(explained(error, conf, overrides)) from None
    check_places(before, given=[o.key_or_group for o in parsed])
    changes = _changes(base, now)
    _check_changes(folder, before, changes, now.get("resume_allow") or ())
    config = _changed(before, changes) | {"allow_targets": now["allow_targets"]}
    own = [f"hydra.run.dir={quoted(str(folder))}", "hydra.output_subdir=null"]
    return Resumed([*(str(o.input_line) for o in parsed if _is_of_hydra(o)), *own], config)


def _is_of_hydra(override: Override) -> bool:
    return override.key_or_group.replace("/", ".").partition(".")[0] == "hydra"


def _applied(
    conf: Path, before: Mapping[str, Any], overrides: Sequence[Override]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """A run's config, filled with the keys that `conf` has, without and with a command's words."""
    default = plain(compose("config"))
    base = _filled(before, default)
    groups = [o for o in overrides if (conf / o.key_or_group).is_dir()]
    now = deepcopy(base)
    if groups:
        chosen = plain(compose("config", [str(o.input_line) for o in groups]))
        now = _changed(now, _changes(default, chosen))
        for override in groups:
            place = override.package or override.key_or_group.replace("/", ".")
            content = at(chosen, place)
            if content is not None:
                now = _changed(now, {place: content})
    keys = [o for o in overrides if o not in groups]
    for override in keys:
        if override.type is OverrideType.ADD:  # the same command again names what is there already
            override.type = OverrideType.FORCE_ADD
    cfg = OmegaConf.create(now)
    OmegaConf.set_struct(cfg, True)
    ConfigLoaderImpl._apply_overrides_to_config(keys, cfg)
    return base, plain(cfg)


def _filled(config: Mapping[str, Any], default: Mapping[str, Any]) -> dict[str, Any]:
    """A config with the keys of another where it has none itself."""
    filled = dict(default) | dict(config)
    for key, inner in config.items():
        outer = default.get(key)
        if isinstance(inner, Mapping) and isinstance(outer, Mapping):
            filled[key] = _filled(inner, outer)
    return filled


def _changes(base: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys that differ, with their new values; `_ABSENT` for those that are gone."""
    before, after = flat(base), flat(now)
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
    known = flat(before)
    refused = [
        f"{key}: {known.get(key, 'absent')} -> {'absent' if value is _ABSENT else value}"
        for key, value in changes.items()
        if known.get(key, _ABSENT) != value
        and not moves_nothing(key)
        and key not in _ELASTIC
        and not any(key == a or key.startswith(f"{a}.") for a in allow)
    ]
    if refused:
        keys = ",".join(line.partition(":")[0] for line in refused[:5])
        raise SpecError(
            f"resume={folder}: the config differs from the run's ({'; '.join(refused[:5])}); "
            f"leave it out, or allow it by resume_allow=[{keys}]"
        )
