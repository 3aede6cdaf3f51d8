"""Losses, objectives, the loop and its checkpoints."""
