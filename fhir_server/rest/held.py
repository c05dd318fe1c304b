"""Definitions that are held here: those that ship, and those that were uploaded. They are for everybody.

Hides where a profile, a value set or a code system comes from, and which of several with one URL is meant.
"""

from collections.abc import Iterable, Mapping
from functools import cache
from importlib.resources import files
from typing import Any

import orjson

from fhir_server.model import definitions, profiles
from fhir_server.model.criteria import clause
from fhir_server.model.outcome import InvalidResource, Issue
from fhir_server.model.query import Query
from fhir_server.model.terminology import Terminology
from fhir_server.store.joins import shipped
from fhir_server.store.repository import Repository
from imaging.errors import AppError, Category

Json = dict[str, Any]

MOST_VERSIONS = 50  # of one definition that are looked through for the version that a canonical names
WHERE = "meta.profile"  # of what the door calls 422
_ABSTRACT = ("Resource", "DomainResource")


class Held:
    """The definitions; `own` is the server's own repository."""

    def __init__(self, own: Repository) -> None:
        self._own = own

    def profile(self, canonical: str) -> Mapping[str, Any] | None:
        """Return the StructureDefinition of a canonical, `url` or `url|version`; of several the latest written."""
        return _base(canonical) or _shipped_profiles().get(canonical) or self._stored("StructureDefinition", canonical)

    def terminology(self) -> Terminology:
        """Return code systems and value sets."""
        return shipped().using(self._stored)

    def check(self, resource: Json, urls: Iterable[str]) -> list[Issue]:
        """Return what keeps a resource from conforming to profiles. Raises NOT_FOUND for one that is not held."""
        return profiles.check(resource, urls, self.profile, self.terminology())

    def declared(self, resource: Json, *, besides: Iterable[str] = ()) -> list[Issue]:
        """Return the same of the profiles that the resource says it conforms to; one that is not held is told."""
        found: list[Issue] = []
        kind, done = resource["resourceType"], {*besides, f"{profiles.CORE}{resource['resourceType']}"}
        for url in resource.get("meta", {}).get("profile", ()):
            if not isinstance(url, str) or url in done:
                continue
            try:
                found += self.check(resource, [url])
            except AppError as error:
                if error.category is Category.TOO_LARGE:
                    raise
                text = f"conformance was not checked: {error.message}"
                found.append(Issue("not-found", text, f"{kind}.{WHERE}", "information"))
        return found

    def demand(self, resource: Json) -> None:
        """Return when a resource conforms to those of its profiles that are held. Raises INVALID with the findings."""
        if "profile" not in resource.get("meta", {}):
            return
        issues = tuple(each for each in self.declared(resource) if each.severity == "error")
        if issues:
            raise InvalidResource(issues[: profiles.MOST_ISSUES], where=WHERE)

    def _stored(self, kind: str, canonical: str) -> Json | None:
        url, _, version = canonical.partition("|")
        query = Query(kind, (clause(kind, "url", _escaped(url)),), count=MOST_VERSIONS if version else 1)
        found = (each.json() for each in self._own.search(query).matches)
        return next((each for each in found if not version or each.get("version") == version), None)


def _base(canonical: str) -> Json | None:
    """Return what R4's own definition of a resource type demands beyond the base, which is nothing but the type."""
    url, _, version = canonical.partition("|")
    kind = url.removeprefix(profiles.CORE)
    is_one = url.startswith(profiles.CORE) and (kind in definitions.resource_types() or kind in _ABSTRACT)
    return {"url": url, "type": kind} if is_one and version in ("", "4.0", "4.0.1") else None


@cache
def _shipped_profiles() -> Mapping[str, Json]:
    text = files(definitions).joinpath("profiles.json").read_bytes()
    return {each["url"]: each for each in orjson.loads(text)}


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace(",", "\\,").replace("|", "\\|").replace("$", "\\$")
