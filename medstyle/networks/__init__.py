"""The generator, the discriminators, the sources of style, and the translator folder."""
