"""Hydra session: set up to compose configs from a folder, and what lies in that folder."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf


def conf_folder() -> Path:
    """The folder conf/: inside the installed package, or beside it in a checkout."""
    inside = Path(__file__).resolve().parent.parent / "conf"
    return inside if inside.is_dir() else inside.parent.parent / "conf"


def options_of(folder: Path) -> list[str]:
    """Names of the options of a config group, from the group's folder."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


@contextmanager
def composing(conf: Path) -> Iterator[None]:
    """Hydra set up for `compose`, also inside a job, where it is set up for that one already."""
    state = GlobalHydra.instance()
    outer, state.hydra = state.hydra, None
    try:
        with initialize_config_dir(str(conf), version_base="1.3", job_name="train"):
            yield
    finally:
        state.hydra = outer


def plain(cfg: Any) -> dict[str, Any]:
    """A composed config with its interpolations resolved, as plain values."""
    config: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    return config
