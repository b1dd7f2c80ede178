"""The config that a run folder keeps in .hydra/: written, composed anew, compared."""

import re
from collections.abc import Mapping, Sequence
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
from qat.spec.overrides import differences, quoted
from qat.spec.run import RunSpec
from qat.spec.targets import with_names_of_now

# what a resume may set anew without asking: it does not enter the numbers
_FREE = ("resume", "resume_allow", "allow_targets")


def resumed_overrides(overrides: list[str]) -> list[str]:
    """Overrides of the run named by `resume=FOLDER`, with the new ones behind; else unchanged.

    Raises:
        CheckpointError: the folder is none of a run.
    """
    named = [o for o in overrides if o.lstrip("+").startswith("resume=")]
    folder = named[-1].partition("=")[2].strip("\"'") if named else "null"
    if folder in ("null", ""):
        return overrides
    earlier = _run_overrides(Path(folder), "resume")
    own = [f"hydra.run.dir={quoted(folder)}", "hydra.output_subdir=null"]
    return [*_of_a_run(earlier, folder), *overrides, *own]


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
        if not parts & {"hydra", "_global_", "allow_targets"}:
            heard.append(str(override.input_line))
    return heard


def recomposed(
    conf: Path, folder: Path, *, allow_targets: Sequence[str] = (), key: str = "resume"
) -> RunSpec:
    """The options of a finished or interrupted run, composed anew from `conf`.

    A folder may come from anyone: its `_target_`s are held against what qat itself calls, and
    `allow_targets` of the folder is not heard.

    Args:
        conf: folder of the config.
        folder: run folder.
        allow_targets: further prefixes that a `_target_` may start with.
        key: what named the folder, for messages.

    Raises:
        CheckpointError: the folder is none of a run, names something that may not be called, or
            `conf` now composes another config.
    """
    overrides = _run_overrides(folder, key)
    # what the run itself was resumed from is not part of what it is
    own = ("resume=", "hydra.")
    try:
        with composing(conf):
            config = plain(compose("config", [o for o in overrides if not o.startswith(own)]))
        check_same(folder, config, ())
        config.pop("allow_targets")
        return typed(config, allow_targets)
    except (SpecError, HydraException, OmegaConfBaseException) as error:
        reason = str(error).replace("resume=", f"{key}=", 1).partition("; leave it out")[0]
        raise CheckpointError(
            f"{key}={folder} is a run that this qat does not open: {' '.join(reason.split())}"
        ) from None


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
    OmegaConf.save(OmegaConf.create(list(overrides)), hydra / "overrides.yaml")
    OmegaConf.save(OmegaConf.create(dict(config)), hydra / "config.yaml")


def check_same(folder: Path, config: Mapping[str, Any], allow: tuple[str, ...]) -> None:
    """Refuse to resume with another config than the run's, unless the keys are allowed by name."""
    saved = folder / ".hydra" / "config.yaml"
    if not saved.is_file():
        raise CheckpointError(f"resume={folder} is no run folder: {saved} does not exist")
    before = _flat(with_names_of_now(plain(OmegaConf.load(saved))))
    now = _flat(with_names_of_now(config))
    changed = [
        f"{key}: {before.get(key, 'absent')} -> {now.get(key, 'absent')}"
        for key in sorted({*before, *now})
        if before.get(key) != now.get(key)
        and key.partition(".")[0] not in _FREE
        and not any(key == a or key.startswith(f"{a}.") for a in allow)
    ]
    if changed:
        keys = ",".join(line.partition(":")[0] for line in changed[:5])
        raise SpecError(
            f"resume={folder}: the config differs from the run's ({'; '.join(changed[:5])}); "
            f"leave it out, or allow it by resume_allow=[{keys}]"
        )


def _run_overrides(folder: Path, key: str) -> list[str]:
    saved = folder / ".hydra" / "overrides.yaml"
    if not saved.is_file():
        raise CheckpointError(
            f"{key}={folder} is no run folder: {saved} does not exist; give runs/DATE/TIME"
        )
    return [str(o) for o in OmegaConf.load(saved)]


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
