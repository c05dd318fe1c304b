"""DICOM in, DICOM out: the archive and everything about pixels. Knows nothing of FHIR, HTTP or users."""
