"""One run: built, fitted, judged, opened again."""
