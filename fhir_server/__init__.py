"""The FHIR ImagingStudy server: FHIR resources in MongoDB that index the images kept by `imaging`."""
