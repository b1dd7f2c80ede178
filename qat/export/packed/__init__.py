"""Packed files: codes at their true bits, scales, and a header."""
