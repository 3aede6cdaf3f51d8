"""The digital brain phantom: a generator of studies whose truth is known."""
