"""FHIR Bundles put together from stored bytes: a resource is never parsed and written again on its way out. Pure.

Source: FHIR R4 bundle, http 3.1.0.1.9 (history), search 3.1.1.5 (links, self).
"""

import re
import uuid
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any
from urllib.parse import urlencode

from fhir_server.model import json
from fhir_server.model.dates import to_instant
from fhir_server.model.query import CURSOR, Query
from fhir_server.rest.asks import Answer
from fhir_server.store.documents import Resource
from fhir_server.store.search import Page

# A string, a mark of structure, or anything else between them.
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|[{}\[\],:]|[^\s{}\[\],:"]+')

_INCLUDED = b'"search":{"mode":"include"}'


def searchset(
    base_url: str,
    query: Query,
    page: Page,
    outcome: dict[str, Any] | None,
    now: datetime,
    *,
    local: Iterable[tuple[str, bytes]] = (),
) -> bytes:
    """Return the Bundle of one page of a search.

    outcome   tells what was left out, None when nothing was
    local     fullUrl and body of what comes with the page and is in this Bundle only
    """
    used = [*query.used]
    links = [("self", _address(base_url, query.path, used))]
    if page.next_cursor:
        links.append(("next", _address(base_url, query.path, [*used, (CURSOR, page.next_cursor)])))
    entries = [_entry(base_url, each, b'"search":{"mode":"match"}') for each in page.matches]
    entries += [_entry(base_url, each, _INCLUDED) for each in page.includes]
    entries += [_told(url, body, _INCLUDED) for url, body in local]
    if outcome is not None:
        entries.append(b'{"resource":' + json.dumps(outcome) + b',"search":{"mode":"outcome"}}')
    return _bundle("searchset", page.total, links, entries, now)


def history(base_url: str, versions: Sequence[Resource], links: Iterable[tuple[str, str]], now: datetime) -> bytes:
    """Return the Bundle of versions of one resource, as they are given; the total is not told."""
    return _bundle("history", None, links, [version_entry(base_url, each) for each in versions], now)


def responses(kind: str, entries: list[bytes], now: datetime) -> bytes:
    """Return the Bundle of the answers to the entries of a batch or transaction (`response`), in their order."""
    return _bundle(kind, None, (), entries, now)


def pretty(body: bytes) -> bytes:
    """Return JSON indented for people, every value with its own digits."""
    return b"".join(_indented(body)) + b"\n"


def _bundle(
    kind: str, total: int | None, links: Iterable[tuple[str, str]], entries: list[bytes], now: datetime
) -> bytes:
    head: dict[str, Any] = {
        "resourceType": "Bundle",
        "id": str(uuid.uuid4()),
        "meta": {"lastUpdated": to_instant(now)},
        "type": kind,
        **({} if total is None else {"total": total}),
        **({"link": told} if (told := [{"relation": relation, "url": url} for relation, url in links]) else {}),
    }
    if not entries:
        return json.dumps(head)
    return b"".join([json.dumps(head)[:-1], b',"entry":[', b",".join(entries), b"]}"])


def _entry(base_url: str, resource: Resource, told: bytes) -> bytes:
    return _told(f"{base_url}/{resource.key}", resource.body, told)


def _told(url: str, body: bytes, told: bytes) -> bytes:
    return b"".join([b'{"fullUrl":', json.dumps(url), b',"resource":', body, b",", told, b"}"])


def version_entry(base_url: str, version: Resource) -> bytes:
    """Return the entry of a version in a history."""
    status = {"DELETE": "204", "POST": "201"}.get(version.method, "201" if version.version == 1 else "200")
    url = version.type if version.method == "POST" else version.key
    told = {
        "request": {"method": version.method, "url": url},
        "response": {"status": status, "etag": version.etag, "lastModified": to_instant(version.last_updated)},
    }
    words = json.dumps(told)[1:-1]
    if version.deleted:
        return b'{"fullUrl":' + json.dumps(f"{base_url}/{version.key}") + b"," + words + b"}"
    return _entry(base_url, version, words)


def response(answer: Answer) -> bytes:
    """Return the answer to an entry of a batch or transaction as an entry of theirs."""
    told: dict[str, Any] = {"status": f"{answer.status.value} {answer.status.phrase}"}
    if answer.location:
        told["location"] = answer.location
    if answer.version:
        told |= {"etag": answer.version.etag, "lastModified": to_instant(answer.version.last_updated)}
    words = json.dumps(told)
    if answer.is_outcome:
        words = words[:-1] + b',"outcome":' + answer.body + b"}"
    parts = [b'"response":' + words]
    if answer.body and not answer.is_outcome:
        # No fullUrl: several answers may be about one resource, and bdl-7 wants it to be unique.
        parts.insert(0, b'"resource":' + answer.body)
    return b"{" + b",".join(parts) + b"}"


def _address(base_url: str, path: str, parameters: Sequence[tuple[str, str]]) -> str:
    address, query = f"{base_url}/{path}" if path else base_url, urlencode(parameters)
    return f"{address}?{query}" if query else address


def _indented(body: bytes) -> Iterator[bytes]:
    depth, is_opened = 0, False
    for match in _TOKEN.finditer(body):
        token = match[0]
        if token in b"]}":
            depth -= 1
            if not is_opened:
                yield b"\n" + b"  " * depth
            is_opened = False
            yield token
            continue
        if is_opened:
            yield b"\n" + b"  " * depth
        is_opened = token in b"[{"
        depth += is_opened
        yield token
        if token == b",":
            yield b"\n" + b"  " * depth
        elif token == b":":
            yield b" "
