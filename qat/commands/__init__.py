"""The commands beside training: export, evaluate, predict."""
