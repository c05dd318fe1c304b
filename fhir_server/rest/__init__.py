"""FHIR's RESTful interactions, whoever carries them: a request, or an entry of a Bundle."""
