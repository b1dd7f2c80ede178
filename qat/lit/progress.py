"""Lightning's loop counters, put to rest in a checkpoint; `data.loader` reads the place from them.

Checked against Lightning 2.6.6. A counter has `ready`, `started`, `processed` and `completed`, each
as `total` and as `current` (this epoch).
"""

from typing import Any, Literal

from lightning.pytorch import Trainer

# batch: inside an epoch; epoch: between two epochs; end: after the last one
Boundary = Literal["batch", "epoch", "end"]


def rest_at(boundary: Boundary, loops: dict[str, Any], trainer: Trainer) -> None:
    """Rewrite the saved counters so that a resume goes on exactly at the boundary.

    Lightning offers no hook between two batches, so the hook of the next one is used, which has
    counted `ready` already.

    Args:
        boundary: Where the state was taken.
        loops: `checkpoint["loops"]["fit_loop"]`, changed in place.
        trainer: Tells whether steps or epochs limit the run.
    """
    if boundary == "batch":
        _add(loops["epoch_loop.batch_progress"], ready=-1)
        loops["epoch_loop.batch_progress"]["is_last_batch"] = False
        _as_after_batch(loops)
    elif boundary == "epoch":
        _add(loops["epoch_progress"], ready=-1)
        # a run limited by max_steps always takes the path of an unfinished epoch
        if trainer.max_steps != -1:
            loops["epoch_loop.val_loop.batch_progress"]["is_last_batch"] = True
            _as_after_batch(loops)


def _as_after_batch(loops: dict[str, Any]) -> None:
    """Make the state look as if taken in `on_train_batch_end`.

    That is where Lightning's own callback saves, and the only state inside an epoch that it
    resumes without running or skipping a validation or losing a logging step.
    """
    _add(loops["epoch_loop.batch_progress"], completed=-1)
    loops["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1


def _add(progress: dict[str, Any], **changes: int) -> None:
    for part in ("total", "current"):
        for counter, change in changes.items():
            progress[part][counter] += change
