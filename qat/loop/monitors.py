"""Callbacks of Lightning that choose by a monitored metric, at the switch to few levels."""

import math
from typing import Any

import torch
from lightning.pytorch import Trainer


def wait_for_quantization(trainer: Trainer) -> None:
    """Let early stopping wait: no float epoch ends a fit that is to be quantized.

    Args:
        trainer: at the start of an epoch of the warm start.
    """
    for callback in _kind(trainer, "EarlyStopping"):
        callback.wait_count = 0
        callback.best_score = torch.tensor(_worst(callback.mode))


def choose_anew(trainer: Trainer) -> None:
    """Let checkpoints and early stopping choose anew: scores of float epochs say nothing of others.

    Files of float epochs that have been kept until now stay where they are.

    Args:
        trainer: at the first quantized step.
    """
    wait_for_quantization(trainer)
    for callback in _kind(trainer, "ModelCheckpoint"):
        if callback.monitor is not None:
            callback.best_k_models = {}
            callback.best_model_path = callback.kth_best_model_path = ""
            callback.best_model_score = None
            callback.kth_value = torch.tensor(_worst(callback.mode))


def _kind(trainer: Trainer, name: str) -> list[Any]:
    """Callbacks of a class or of classes made of it; by name, as there are two packages of them."""
    every: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    return [c for c in every if name in {base.__name__ for base in type(c).__mro__}]


def _worst(mode: str) -> float:
    return math.inf if mode == "min" else -math.inf
