"""Sweep command: what it says of the sweep, taken apart from what it says of the runs."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qat.compose import conf_folder, sweep_option
from qat.errors import CheckpointError, SpecError
from qat.spec.schema import read
from qat.spec.sweep import SweepSpec
from qat.storage.run_files import read_yaml

if TYPE_CHECKING:
    from qat.sweep.hydra_launcher import Launch


def is_sweep(overrides: Sequence[str], *, multirun: bool) -> bool:
    """Whether a command is for many runs: -m, or sweep options."""
    return multirun or any(map(_is_option, overrides))


def sweep(overrides: Sequence[str], *, launch: "Launch") -> bool:
    """Run the sweep that a command asks for; returns whether all of its jobs are finished.

    Args:
        overrides: as on the command line, without flags.
        launch: hands the runs to a launcher of Hydra, if the command chose one.

    Raises:
        QatError: see `qat.sweep.run.run_sweep`.
    """
    from qat.sweep.hydra_launcher import run_launched
    from qat.sweep.run import run_sweep

    own = [o for o in overrides if not _is_option(o)]
    _check_runs(own)
    spec, chosen = sweep_spec([o for o in overrides if _is_option(o)])
    folder = folder_of(own, spec, chosen)
    if any(o.startswith("hydra/launcher=") for o in own):
        return run_launched(own, spec, folder, launch)
    return run_sweep(own, spec, folder)


def sweep_spec(options: Sequence[str]) -> tuple[SweepSpec, str | None]:
    """The options of a sweep, and the name of the file they come from.

    Args:
        options: sweep=NAME or sweep=FILE.yaml, and sweep.KEY=VALUE.

    Raises:
        SpecError: one is unknown or out of range.
    """
    chosen = [o.partition("=")[2].strip("\"'") for o in options if o.startswith("sweep=")]
    name = chosen[-1] if chosen else None
    own: dict[str, Any] = {}
    if name is not None and name.endswith((".yaml", ".yml")):
        own, name = _file(Path(name)), Path(name).stem
        options = [o for o in options if not o.startswith("sweep=")]
    return read(SweepSpec, {**own, **sweep_option(conf_folder(), options)}, "sweep"), name


def _file(path: Path) -> dict[str, Any]:
    try:
        return read_yaml(path)
    except CheckpointError as error:
        raise SpecError(f"sweep={path}: {error}; conf/sweep has examples") from None


def folder_of(overrides: Sequence[str], spec: SweepSpec, chosen: str | None) -> Path:
    """The sweep's folder: hydra.sweep.dir, or below sweep.folder by name, file, experiment or hash.

    The same command finds the same folder.

    Raises:
        SpecError: the folder would depend on the time.
    """
    given = {o.partition("=")[0]: o.partition("=")[2].strip("\"'") for o in overrides}
    if "${" in given.get("hydra.sweep.dir", ""):
        raise SpecError(
            f"hydra.sweep.dir={given['hydra.sweep.dir']} must be a plain folder, so that the same "
            "command finds it again"
        )
    if "hydra.sweep.dir" in given:
        return Path(given["hydra.sweep.dir"])
    digest = hashlib.sha256("\n".join(sorted(overrides)).encode()).hexdigest()[:8]
    name = spec.name or chosen or given.get("experiment") or digest
    return Path(spec.folder) / name.replace("/", "_")


def _is_option(override: str) -> bool:
    return override.lstrip("+").startswith(("sweep=", "sweep."))


def _check_runs(overrides: Sequence[str]) -> None:
    for override in overrides:
        key = override.lstrip("+~").partition("=")[0]
        if key == "audit_only":
            raise SpecError(f"{override}: a sweep trains; leave it out, or -m and the lists")
        if key in ("resume", "hydra.run.dir"):
            raise SpecError(
                f"{override}: a sweep has a folder for each run and continues by itself; give the "
                "same command again, or choose the folder with hydra.sweep.dir=FOLDER"
            )
