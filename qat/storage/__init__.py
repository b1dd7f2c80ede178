"""Storage: what is kept on disk, whole or not at all; no torch until a function needs it."""
