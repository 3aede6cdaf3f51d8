"""The door to the archive: studies come in by DICOM or DICOMweb, results go back."""
