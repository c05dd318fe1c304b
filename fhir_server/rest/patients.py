"""Patients as people pick them: by words, in the order of their names, through the repository of who looks."""

import re
from typing import Any

from fhir_server.model.criteria import ID_FORM, escaped
from fhir_server.model.query import Query, parse
from fhir_server.store.documents import Resource
from fhir_server.store.repository import Repository
from imaging.errors import AppError, Category

MOST_SHOWN = 20
_REFERENCE = re.compile(r"Patient/(.+)")


def find(repository: Repository, words: str) -> list[dict[str, str]]:
    """Return id, name, date of birth and number of the patients that words mean, at most `MOST_SHOWN`.

    words   "Patient/..." for one of them, the beginning of a name or a whole number otherwise, "" for the newest
    """
    named = _REFERENCE.fullmatch(words)
    if named:
        return [_row(each) for each in _one(repository, named[1])]
    words = words.strip()
    searches: list[list[tuple[str, str]]] = [[("identifier", escaped(words))], [("name", escaped(words))]]
    found: dict[str, Resource] = {}
    for search in searches if words else [[]]:
        query = parse("Patient", [*search, ("_count", str(MOST_SHOWN))])
        found |= {each.key: each for each in _matches(repository, query)}
    return [_row(each) for each in list(found.values())[:MOST_SHOWN]]


def _matches(repository: Repository, query: Query) -> list[Resource]:
    try:
        return list(repository.search(query).matches)
    except AppError as error:
        if error.category is Category.FORBIDDEN:  # by a contract that is about no patients
            return []
        raise


def _one(repository: Repository, identifier: str) -> list[Resource]:
    if not ID_FORM.fullmatch(identifier):
        return []
    try:
        return [repository.read("Patient", identifier)]
    except AppError as error:
        if error.category in (Category.NOT_FOUND, Category.GONE, Category.FORBIDDEN):
            return []
        raise


def _row(patient: Resource) -> dict[str, str]:
    resource: dict[str, Any] = patient.json()
    names = resource.get("name", [{}])
    name = names[0] if names else {}
    shown = name.get("text") or " ".join([*name.get("given", []), name.get("family", "")]).strip()
    number = next((each["value"] for each in resource.get("identifier", ()) if each.get("value")), "")
    told = {"born": resource.get("birthDate", ""), "number": number}
    return {"id": patient.id, "name": shown or f"Patient {patient.id}", **told}
