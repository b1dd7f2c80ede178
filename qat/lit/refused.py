"""Callbacks and strategies that would train or keep weights that are not on the grid."""

import lightning as L

from qat.errors import QatError

_CALLBACKS = ("WeightAveraging", "EMAWeightAveraging", "StochasticWeightAveraging")
_STRATEGIES = ("FSDPStrategy", "ModelParallelStrategy", "DeepSpeedStrategy")


def refuse_unsupported(trainer: L.Trainer) -> None:
    """Raise before anything runs if the trainer averages or shards weights.

    Raises:
        QatError: naming the callback or the strategy, and the cure.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        names = {base.__name__ for base in type(callback).__mro__}
        if not names.isdisjoint(_CALLBACKS):
            raise QatError(
                f"{type(callback).__name__} averages forward weights, and averages leave the "
                "grid; remove the callback"
            )
    if type(trainer.strategy).__name__ in _STRATEGIES:
        raise QatError(
            f"{type(trainer.strategy).__name__} shards weights, and a scale needs whole "
            "tensors; use trainer.strategy=auto or ddp"
        )
