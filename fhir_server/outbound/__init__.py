"""Requests that this server makes to others: STOW-RS, QIDO-RS, WADO-RS and signed webhooks.

Knows no database and no FHIR. An address comes from the operator alone; what it leads to is checked and bounded.
"""
