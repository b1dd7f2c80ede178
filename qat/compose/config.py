"""Config composition: a command's overrides, composed and checked."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import open_dict
from omegaconf.errors import OmegaConfBaseException

from qat.compose.errors import explained
from qat.compose.resume import resumed
from qat.compose.session import composing, conf_folder, plain
from qat.errors import SpecError
from qat.spec.check import check_config
from qat.spec.data import HELD_OUT, DataSpec, options_of
from qat.spec.data_files import check_data
from qat.spec.overrides import as_override
from qat.spec.run import RunSpec
from qat.spec.schema import read
from qat.storage.writable import check_writable


@dataclass(frozen=True, slots=True)
class Composed:
    """One run's overrides and what they come to.

    Attributes:
        overrides: as on the command line, without those of hydra itself.
        config: resolved, plain values.
        spec: the same, checked.
    """

    overrides: tuple[str, ...]
    config: dict[str, Any]
    spec: RunSpec


@dataclass(frozen=True, slots=True)
class Checked:
    """A command whose run can begin.

    Attributes:
        overrides: the command's; where it resumes, those of Hydra itself only.
        config: of the run, resolved, plain values.
        spec: the same, checked.
    """

    overrides: list[str]
    config: dict[str, Any]
    spec: RunSpec


def checked(conf: Path, overrides: list[str]) -> Checked:
    """Compose and check the run that these overrides ask for, its folder included.

    Args:
        conf: folder of the config.
        overrides: as on the command line, without flags.

    Raises:
        QatError: one line for the first thing that is wrong: options, data, a folder to resume.
    """
    earlier = resumed(conf, overrides)
    overrides = earlier.overrides if earlier else overrides
    try:
        with composing(conf):
            cfg = compose("config", overrides, return_hydra_config=True)
            folder = cfg.hydra.run.dir
            with open_dict(cfg):
                del cfg["hydra"]
            config = earlier.config if earlier else plain(cfg)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise SpecError(explained(error, conf, overrides)) from None
    spec = check_config(config)
    check_writable(Path(folder), "hydra.run.dir")
    return Checked(overrides, config, spec)


def composed(conf: Path, overrides: Sequence[str]) -> Composed:
    """Compose and check one run, wherever it will lie.

    Raises:
        QatError: as `checked`.
    """
    own = [o for o in overrides if not o.lstrip("+~").startswith("hydra.")]
    config = _composed_config(conf, list(overrides))
    return Composed(tuple(own), config, check_config(config))


def combinations(overrides: list[str]) -> list[list[str]]:
    """The overrides of every run that a command with lists of choices asks for, in order.

    Raises:
        SpecError: an override cannot be read.
    """
    try:
        with composing(conf_folder()):
            return _combinations(overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise SpecError(explained(error, conf_folder(), overrides)) from None


def group_option(conf: Path, group: str, name: str) -> Any:
    """The content of one option of a config group, as plain values.

    Raises:
        SpecError: there is no such option.
    """
    return _composed_config(conf, [f"{group}={name}"])[group]


def sweep_option(conf: Path, options: Sequence[str]) -> Any:
    """The config group `sweep` of these options, sweep=NAME and sweep.KEY=VALUE, as plain values.

    Raises:
        SpecError: there is no such file, or an option cannot be read.
    """
    # a group apart: no run's config holds it
    added = [f"+{o}" if o.startswith("sweep=") else f"++{o.lstrip('+')}" for o in options]
    return _composed_config(conf, added).get("sweep", {})


def composed_data(conf: Path, overrides: list[str], base: DataSpec | None = None) -> DataSpec:
    """The config group `data` of these overrides, checked.

    Args:
        conf: folder of the config.
        overrides: data=NAME and data.KEY=VALUE.
        base: options that hold where `overrides` name neither a data set nor the key; how its
            files are read and carved holds for data=NAME of the same name, too.

    Raises:
        SpecError: an override is wrong.
        DataError: the data set is not where the options say.
    """
    named = [o for o in overrides if o.startswith("data=")]
    if base is not None and set(named) <= {f"data={base.name}"}:
        kept = HELD_OUT if named else asdict(base).keys() - {"name"}
        known = {k: v for k, v in asdict(base).items() if k in kept and v is not None}
        own = [f"data.{k}={as_override(v)}" for k, v in known.items() if k in options_of(base.name)]
        overrides = [f"data={base.name}", *own, *(o for o in overrides if o not in named)]
    config = _composed_config(conf, overrides)
    spec = read(DataSpec, config["data"], "data")
    check_data(spec)
    return spec


def _composed_config(conf: Path, overrides: list[str]) -> dict[str, Any]:
    try:
        with composing(conf):
            return plain(compose("config", overrides))
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise SpecError(explained(error, conf, overrides)) from None


def _combinations(overrides: list[str]) -> list[list[str]]:
    # glob(...) asks for the names of a group's files
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    choices = []
    for override in parser.parse_overrides(overrides):
        if override.is_sweep_override():
            key = override.get_key_element()
            choices.append([f"{key}={value}" for value in override.sweep_string_iterator()])
        else:
            choices.append([str(override.input_line)])
    return [list(job) for job in product(*choices)]
