"""Endpoints of a single answer: where a search includes the Endpoint of this server's DICOMweb, who is given capability
URLs gets one for each study instead, good for that study alone.

They are no resources of this server: each is in the Bundle only, under a `urn:uuid`.
Source: SMART Imaging Access 0.1.0, finding studies and retrieving images.
"""

from dataclasses import replace
from typing import Protocol
from uuid import uuid4

from fhir_server.access import backing
from fhir_server.access.audit import Access
from fhir_server.access.capability_urls import CapabilityUrls, had_by_url, known_by_token, may_have
from fhir_server.access.policy import restriction
from fhir_server.access.principals import Principal
from fhir_server.model import json
from fhir_server.model.dates import to_instant
from fhir_server.projection import ENDPOINT, REQUIRES_ACCESS_TOKEN, endpoint, study_uid_of
from fhir_server.store.documents import Resource
from fhir_server.store.filters import DENY, Act
from fhir_server.store.search import Page

PATH = "/capability"  # below the DICOMweb door, before the secret
# Inside a JSON string a quotation mark is escaped, so these bytes are never part of a value.
_REFERENCE = b'"reference":"%s"'

Local = list[tuple[str, bytes]]  # fullUrl and body of what is in the Bundle only


class Backing(backing.Backing, Protocol):
    """What this needs of the server."""

    @property
    def capability_urls(self) -> CapabilityUrls: ...  # noqa: D102


def opened(server: Backing, principal: Principal, page: Page) -> tuple[Page, Local]:
    """Return a page with capability URLs in place of the Endpoint that it includes, and those Endpoints.

    The page stays as it is for who is given none. Raises BUSY for too many.
    """
    if not may_have(principal) or all(each.key != ENDPOINT for each in page.includes):
        return page, []
    ours = _REFERENCE % ENDPOINT.encode()
    told = [*page.matches, *page.includes]
    named = {each.key: uid for each in told if ours in each.body and (uid := _study(each))}
    wanted = _retrievable(server, principal, list(named.values()))
    if not wanted:
        return page, []
    given, end = server.capability_urls.give(principal, wanted)
    urls = {uid: f"urn:uuid:{uuid4()}" for uid in given}

    def shown(found: Resource) -> Resource:
        url = urls.get(named.get(found.key, ""))
        return replace(found, body=found.body.replace(ours, _REFERENCE % url.encode())) if url else found

    matches = [shown(each) for each in page.matches]
    includes = [shown(each) for each in page.includes if each.key != ENDPOINT or len(urls) < len(named)]
    local: Local = []
    for uid, secret in given.items():
        one = endpoint(f"{server.dicomweb_url}{PATH}/{secret}")
        one |= {"id": urls[uid].removeprefix("urn:uuid:"), "name": "DICOMweb of this server, one study"}
        one |= {
            "extension": [{"url": REQUIRES_ACCESS_TOKEN, "valueBoolean": False}],
            "period": {"end": to_instant(end)},
        }
        local.append((urls[uid], json.dumps(one)))
    server.audit.record(known_by_token(principal), Access.GIVE_URLS, studies=dict.fromkeys(given, 0))
    return replace(page, matches=matches, includes=includes), local


def _study(found: Resource) -> str | None:
    return study_uid_of(found.json()) if found.type == "ImagingStudy" else None


def _retrievable(server: Backing, principal: Principal, study_uids: list[str]) -> list[str]:
    """Return which of some studies the principal may retrieve, and have by capability URLs: both of it now."""
    for each in (principal, had_by_url(principal)):
        if restriction(each).access("ImagingStudy", Act.READ) is DENY:
            return []
        if study_uids:
            study_uids = server.repository_for(each).ids("ImagingStudy", Act.READ, among=study_uids)
    return study_uids
