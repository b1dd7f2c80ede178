"""Modules and callables that hold a quantizer's options or parameters."""
