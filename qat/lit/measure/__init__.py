"""Callbacks that measure a network while it trains."""
