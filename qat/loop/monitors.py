"""Callbacks of Lightning that choose by a monitored metric, at the switch to few levels."""

import math

import torch
from lightning.pytorch import Trainer


def forget_float_scores(trainer: Trainer) -> None:
    """Let checkpoints and early stopping choose anew: scores of float epochs say nothing of others.

    Files of float epochs stay where they are.

    Args:
        trainer: at the first quantized step.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        # by name, as there are two packages of them; subclasses count
        kinds = {base.__name__ for base in type(callback).__mro__}
        if "EarlyStopping" in kinds:
            callback.wait_count = 0
            callback.best_score = torch.tensor(_worst(callback.mode))
        elif "ModelCheckpoint" in kinds and callback.monitor is not None:
            callback.best_k_models = {}
            callback.best_model_path = callback.kth_best_model_path = ""
            callback.best_model_score = None
            callback.kth_value = torch.tensor(_worst(callback.mode))


def _worst(mode: str) -> float:
    return math.inf if mode == "min" else -math.inf
