"""Exact resume: checkpoints, place, signals, guards."""
