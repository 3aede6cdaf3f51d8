"""Generate studies of the digital brain phantom, whose truth is known."""
