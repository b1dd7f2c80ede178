"""Commands: train, export, evaluate, predict, report."""
