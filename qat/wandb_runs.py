"""Runs in Weights & Biases: how they are grouped, and that one process may hold several."""

import os
import sys
from collections.abc import Sequence


def group_run(overrides: Sequence[str], sweep: str | None = None) -> None:
    """Group a run by its experiment, else by its sweep, unless the environment has a group.

    Args:
        overrides: of the run.
        sweep: its name; None for a run by itself.
    """
    experiment = [o.partition("=")[2] for o in overrides if o.startswith("experiment=")]
    group = experiment[-1] if experiment else sweep
    if group is not None:
        os.environ.setdefault("WANDB_RUN_GROUP", group)
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")


def close_wandb() -> None:
    """End the run that wandb has open, if any, so that the next one is its own."""
    wandb = sys.modules.get("wandb")
    if wandb is not None and wandb.run is not None:
        wandb.finish()
