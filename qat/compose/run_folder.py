"""Config of a run folder, kept in .hydra/: written, and opened as data."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from qat.compose.errors import explained
from qat.compose.session import composing, options_of, plain
from qat.errors import CheckpointError, SpecError
from qat.spec.check import typed
from qat.spec.overrides import differences
from qat.spec.run import RunSpec
from qat.storage.atomic import write_whole
from qat.storage.run_files import read_config


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
            raise SpecError(f"{folder}: {explained(error, conf, overrides)}") from None
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
    distances: dict[str, int] = {}
    for name in options_of(conf / group):
        option = plain(compose("config", [f"{group}={name}"]))[group]
        if option == wanted:
            return name
        distances[name] = len(list(differences(option, wanted)))
    return min(distances, key=lambda name: distances[name])
