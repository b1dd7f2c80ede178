"""Training runs: built, fitted, judged, opened again."""
