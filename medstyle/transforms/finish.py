"""What is done to a picture after its translation: sharper, larger."""

from __future__ import annotations

__patient_data__ = True  # an error that passes through here may quote it: medstyle.errors.outline masks its text
