"""Synthetic letters, drawn from the fonts that matplotlib brings."""
