"""Importing checkpoints of other software, and exporting ours for it."""
