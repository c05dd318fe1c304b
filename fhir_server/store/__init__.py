"""FHIR on MongoDB: the versioned repository, its index and its schema."""
