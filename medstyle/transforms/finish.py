"""Empty module: post-processing has moved to `inference/render_options.py`."""

from __future__ import annotations

__patient_data__ = True  # an error that passes through here may quote it: medstyle.errors.outline masks its text
