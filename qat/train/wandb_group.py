"""Weights & Biases groups, and one process that holds several runs."""

import os
import sys
from collections.abc import Sequence

_GROUP = "WANDB_RUN_GROUP"
_given: set[str] = set()  # groups that this process has given its runs


def group_run(overrides: Sequence[str], sweep: str | None = None) -> None:
    """Group a run by its experiment, else by its sweep, unless the environment has a group.

    Args:
        overrides: of the run.
        sweep: its name; None for a run by itself.
    """
    experiment = [o.partition("=")[2] for o in overrides if o.startswith("experiment=")]
    group = experiment[-1] if experiment else sweep
    if os.environ.get(_GROUP) in _given:  # an earlier run's, not the user's
        del os.environ[_GROUP]
    if group is not None and _GROUP not in os.environ:
        os.environ[_GROUP] = group
        _given.add(group)
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")


def close_wandb() -> None:
    """End the run that wandb has open, if any, so that the next one is its own."""
    wandb = sys.modules.get("wandb")
    if wandb is not None and wandb.run is not None:
        wandb.finish()
