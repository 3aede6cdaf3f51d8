"""Represent scans, pictures and videos, and read and write their files."""
