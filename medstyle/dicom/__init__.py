"""Scan, read, write and de-identify DICOM files."""
