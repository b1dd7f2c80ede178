"""Processes of one training (ranks): which of them this is, and what they agree on."""
