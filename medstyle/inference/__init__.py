"""From a source image to a synthetic one on the same grid."""
