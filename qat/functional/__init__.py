"""Tensor functions, pure: no state, no modules, torch only."""
