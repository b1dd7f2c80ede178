"""Data modules, one family a file."""
