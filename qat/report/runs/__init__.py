"""Runs read from their folders, and grouped."""
