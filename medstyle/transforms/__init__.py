"""MONAI transforms: denoise, bias field, resample, normalise, augment, and their inverses."""
