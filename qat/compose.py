"""Compose a command's overrides into a checked config; resume by recomposing an earlier run's."""

import difflib
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from qat.errors import CheckpointError, QatError, SpecError
from qat.lit.data.layout import check_data
from qat.overrides import as_override, differences, quoted
from qat.preflight import check_config, typed
from qat.run_spec import DataSpec, RunSpec
from qat.schema import read

# what a resume may set anew without asking: it does not enter the numbers
_FREE = ("resume", "resume_allow")
_LEAST_FREE = 10 * 2**20  # bytes; less does not even hold the smallest network's checkpoints


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


def conf_folder() -> Path:
    """The folder conf/: inside the installed package, or beside it in a checkout."""
    inside = Path(__file__).resolve().parent / "conf"
    return inside if inside.is_dir() else inside.parent.parent / "conf"


def checked(conf: Path, overrides: list[str]) -> RunSpec:
    """Compose and check the run that these overrides ask for, its folder included.

    Args:
        conf: folder of the config.
        overrides: as on the command line, without flags.

    Raises:
        SpecError: one line for the first thing that is wrong.
    """
    try:
        with _composing(conf):
            config = _plain(compose("config", overrides))
            folder = compose("config", overrides, return_hydra_config=True).hydra.run.dir
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise SpecError(_one_line(error, conf, overrides)) from None
    spec = check_config(config)
    check_writable(Path(folder), "hydra.run.dir")
    if spec.resume is not None:
        _check_same(Path(spec.resume), config, spec.resume_allow)
    return spec


def composed(conf: Path, overrides: Sequence[str]) -> Composed:
    """Compose and check one run, wherever it will lie.

    Raises:
        QatError: as `checked`.
    """
    own = [o for o in overrides if not o.lstrip("+~").startswith("hydra.")]
    config = _composed_config(conf, list(overrides))
    return Composed(tuple(own), config, check_config(config))


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
    return [*earlier, *overrides, *own]


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
        with _composing(conf):
            config = _plain(compose("config", [o for o in overrides if not o.startswith(own)]))
        _check_same(folder, config, ())
        config.pop("allow_targets")
        return typed(config, allow_targets)
    except (SpecError, HydraException, OmegaConfBaseException) as error:
        reason = str(error).replace("resume=", f"{key}=", 1).partition("; leave it out")[0]
        raise CheckpointError(
            f"{key}={folder} is a run that this qat does not open: {' '.join(reason.split())}"
        ) from None


def _run_overrides(folder: Path, key: str) -> list[str]:
    saved = folder / ".hydra" / "overrides.yaml"
    if not saved.is_file():
        raise CheckpointError(
            f"{key}={folder} is no run folder: {saved} does not exist; give runs/DATE/TIME"
        )
    return [str(o) for o in OmegaConf.load(saved)]


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
        base: options that hold where `overrides` neither name another data set nor the key.

    Raises:
        SpecError: an override is wrong.
        DataError: the data set is not where the options say.
    """
    if base is not None and not any(o.startswith("data=") for o in overrides):
        known = {k: v for k, v in asdict(base).items() if v is not None and k != "name"}
        own = [f"data.{key}={as_override(value)}" for key, value in known.items()]
        overrides = [f"data={base.name}", *own, *overrides]
    config = _composed_config(conf, overrides)
    spec = read(DataSpec, config["data"], "data")
    check_data(spec)
    return spec


def recorded(conf: Path, folder: Path, config: Mapping[str, Any]) -> None:
    """Write RUN/.hydra/ for a config that no command line gave, so that it can be recomposed.

    The overrides choose the options that come nearest, and say what then still differs.

    Raises:
        SpecError: the config cannot be composed from `conf`.
    """
    with _composing(conf):
        choices = [
            f"{group}={_nearest(conf, group, config[group])}"
            for group, content in _plain(compose("config")).items()
            if (conf / group).is_dir() and config[group] != content
        ]
        base = _plain(compose("config", choices))
        overrides = [*choices, *differences(base, config)]
        try:
            composed = _plain(compose("config", overrides))
        except (HydraException, OmegaConfBaseException) as error:
            raise SpecError(f"{folder}: {_one_line(error, conf, overrides)}") from None
    if composed != config:
        raise SpecError(f"{folder}: this config cannot be composed from conf/")
    record(folder, overrides, config)


def record(folder: Path, overrides: Sequence[str], config: Mapping[str, Any]) -> None:
    """Write RUN/.hydra/ as Hydra does it for a run of its own."""
    hydra = folder / ".hydra"
    hydra.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(OmegaConf.create(list(overrides)), hydra / "overrides.yaml")
    OmegaConf.save(OmegaConf.create(dict(config)), hydra / "config.yaml")


def _composed_config(conf: Path, overrides: list[str]) -> dict[str, Any]:
    try:
        with _composing(conf):
            return _plain(compose("config", overrides))
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise SpecError(_one_line(error, conf, overrides)) from None


def _nearest(conf: Path, group: str, wanted: Mapping[str, Any]) -> str:
    """The option of a group with the fewest differences from a content."""

    def distance(name: str) -> int:
        option = _plain(compose("config", [f"{group}={name}"]))[group]
        return len(list(differences(option, wanted)))

    return min(_files(conf / group), key=distance)


def instantiated(node: Mapping[str, Any], **extra: Any) -> Any:
    """Call the `_target_` of a config node; its own errors come out as one line.

    Raises:
        SpecError: the call fails; QatErrors of the callee pass as they are.
    """
    from hydra.utils import instantiate

    try:
        return instantiate(node, **extra)
    except Exception as error:
        cause = error.__cause__ or error
        if isinstance(cause, QatError):
            raise cause from None
        raise SpecError(f"{node['_target_']}: {str(cause).splitlines()[0]}") from error


@contextmanager
def _composing(conf: Path) -> Iterator[None]:
    """Hydra set up for `compose`, also inside a job, where it is set up for that one already."""
    state = GlobalHydra.instance()
    outer, state.hydra = state.hydra, None
    try:
        with initialize_config_dir(str(conf), version_base="1.3", job_name="train"):
            yield
    finally:
        state.hydra = outer


def combinations(overrides: list[str]) -> list[list[str]]:
    """The overrides of every run that a command with lists of choices asks for, in order.

    Raises:
        SpecError: an override cannot be read.
    """
    try:
        with _composing(conf_folder()):
            return _combinations(overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise SpecError(_one_line(error, conf_folder(), overrides)) from None


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


def check_writable(folder: Path, key: str) -> None:
    """Raise SpecError if a folder for runs cannot be made where `key` says."""
    parent = folder.absolute()
    while not parent.exists() and not parent.is_symlink():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise SpecError(
            f"{key}={folder}: {parent} is no folder that can be written to; choose another with "
            f"{key}=FOLDER"
        )
    free = shutil.disk_usage(parent).free
    if free < _LEAST_FREE:
        raise SpecError(
            f"{key}={folder}: the disk has {free} bytes left, a run needs "
            f"{_LEAST_FREE} at least; make room or choose another with {key}=FOLDER"
        )


def _plain(cfg: Any) -> dict[str, Any]:
    config: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    return config


def _check_same(folder: Path, config: Mapping[str, Any], allow: tuple[str, ...]) -> None:
    """Refuse to resume with another config than the run's, unless the keys are allowed by name."""
    saved = folder / ".hydra" / "config.yaml"
    if not saved.is_file():
        raise CheckpointError(f"resume={folder} is no run folder: {saved} does not exist")
    before, now = _flat(_plain(OmegaConf.load(saved))), _flat(config)
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


def _flat(node: Any, key: str = "") -> dict[str, Any]:
    if not isinstance(node, Mapping) or not node:
        return {key: node}
    flat: dict[str, Any] = {}
    for name, child in node.items():
        flat |= _flat(child, f"{key}.{name}" if key else str(name))
    return flat


def _one_line(error: Exception, conf: Path, overrides: Sequence[str]) -> str:
    """Hydra's message as one line that names key, value and what is allowed."""
    text = str(error.__cause__ or error) if "Error merging override" in str(error) else str(error)
    group = re.search(r"Could not find '([\w/]+)/([^/']+)'", text)
    if group:
        folder, name = group.groups()
        return f"{folder}={name} is unknown; {folder} is one of {', '.join(_files(conf / folder))}"
    key = re.search(r"(?:Could not override|Key) '([^']+)'", text)
    if key and ("not in struct" in text or "Could not override" in text):
        return _unknown_key(error, key.group(1), conf, overrides)
    if "group override must be a string" in text:
        return "GROUP=null chooses no option of a group; leave it out (for distill: distill=none)"
    bare = re.search(r"Error parsing override '([^']*)'\s+missing EQUAL", text)
    if bare:
        return f"{bare.group(1)!r} must be key=value, e.g. seed=2; see --help"
    lines = [line.strip() for line in text.splitlines()]
    return "; ".join(line for line in lines if line and not line.startswith("See http"))


def _unknown_key(error: Exception, key: str, conf: Path, overrides: Sequence[str]) -> str:
    full = re.search(r"full_key: (\S+)", f"{error}\n{error.__cause__}")
    name = full.group(1) if full else key
    chosen = [o for o in overrides if (conf / o.partition("=")[0].partition("@")[0]).is_dir()]
    with _composing(conf):
        node: Any = compose("config", chosen)
    group = name.partition(".")[0]
    if (conf / group).is_dir() and node.get(group) is None:
        return f"{name} needs {group}=<option> beside it, one of {', '.join(_files(conf / group))}"
    for part in name.split(".")[:-1]:
        node = node.get(part) if hasattr(node, "get") else None
    if not hasattr(node, "keys"):
        return f"{name} is not an option"
    known = [str(k) for k in node.keys()]  # noqa: SIM118  # a DictConfig
    parent = name.rpartition(".")[0]
    close = difflib.get_close_matches(name.rpartition(".")[2], known, n=1)
    mean = f"; did you mean {f'{parent}.{close[0]}'.lstrip('.')}?" if close else ""
    return f"{name} is not an option{mean} (options: {', '.join(known)})"


def _files(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.yaml"))
