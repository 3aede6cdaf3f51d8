"""Keep the former place of post-processing, which is now in the render options."""

from __future__ import annotations

__patient_data__ = True  # an error that passes through here may quote it: medstyle.errors.outline masks its text
