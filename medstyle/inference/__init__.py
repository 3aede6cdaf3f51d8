"""Translate source images to synthetic images on the same grid."""
