"""The Lightning layer: data, models by name, training, checkpoints."""
