"""Weights & Biases ids: one for a run folder, so that every part of a run joins on."""

import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qat.errors import CheckpointError, SpecError
from qat.storage.atomic import write_whole
from qat.storage.reading import is_there, read_regular

_NAME, _VARIABLE = "wandb_id.txt", "WANDB_RUN_ID"
_ID = re.compile(r"[\w-]{1,64}", re.ASCII)


def continued(logger: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """The argument by which a logger goes on with what a run folder logged before.

    Lightning's logger asks to resume a run that it is given the id of, and to begin it if there is
    none. Whether `wandb sync` joins what was logged offline in parts is up to its version.

    Args:
        logger: config of it, `_target_` and arguments.
        folder: run folder.

    Returns:
        `id` for a logger of W&B whose config names none, else nothing.

    Raises:
        CheckpointError: what the folder has in the place of an id is none.
        SpecError: what the environment variable WANDB_RUN_ID says is none.
    """
    is_wandb = str(logger.get("_target_")).rpartition(".")[2] == "WandbLogger"
    if not is_wandb or logger.get("id") or logger.get("version"):
        return {}
    return {"id": wandb_id(folder)}


def wandb_id(folder: Path) -> str:
    """The id of a run folder, kept in RUN/wandb_id.txt; an agent of a W&B sweep brings its own.

    Raises:
        CheckpointError: see `continued`.
        SpecError: see `continued`.
    """
    path = folder / _NAME
    before = _read(path) if is_there(path) else None
    found = _brought() or before or secrets.token_hex(4)
    if found != before:
        write_whole(path, f"{found}\n")
    return found


def _brought() -> str | None:
    """The id that the environment asks for; checked before it is kept, as what is kept will be."""
    text = os.environ.get(_VARIABLE)
    if text and not _ID.fullmatch(text):
        raise SpecError(
            f"{_VARIABLE}={text[:80]!r} is no id of a W&B run; give 1 to 64 letters of A-Z, a-z, "
            "0-9, _ and -, or unset it"
        )
    return text


def _read(path: Path) -> str:
    text = read_regular(path, path.name, most=100).decode("utf-8", "replace").strip()
    if not _ID.fullmatch(text):
        raise CheckpointError(f"{path} holds no id of a W&B run; delete it to begin another one")
    return text
