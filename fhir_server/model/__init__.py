"""FHIR as data: pure functions and tables, no I/O."""
