"""Sweeps: many runs from one command, which go on where they were when it is given again."""
