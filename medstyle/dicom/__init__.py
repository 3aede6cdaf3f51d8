"""DICOM files: scan, read, write derived series, de-identify."""
