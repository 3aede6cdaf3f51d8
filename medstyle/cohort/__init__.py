"""Identify the people and sessions among the input images, and decide which images are usable."""
