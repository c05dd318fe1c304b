"""A FHIR answer as a page for people who come with a browser: readable, with links, without any script.

Everything in it is escaped; links lead to this server only, but for those of a narrative, which is shown where it only
formats text. What a page may load is nothing at all (`POLICY`). Pure.
"""

import hashlib
import re
from base64 import b64encode
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any
from urllib.parse import urlencode

from fhir_server.model import json, narrative
from fhir_server.model.definitions import resource_types
from fhir_server.rest import bundles

Json = dict[str, Any]

MOST_SHOWN = 1 << 20  # bytes of indented JSON on a page; the whole is behind a link
MOST_ENTRIES = 1000
MOST_WORDS = 200  # characters about an entry
STYLE = """
:root { color-scheme: light dark; --ink: #222; --paper: #fff; --soft: #f4f4f4; --rule: #bbb; --link: #0645ad }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ed; --paper: #14171b; --soft: #20252b; --rule: #59626c; --link: #8cc2f5 }
}
body { font: 16px/1.5 sans-serif; color: var(--ink); background: var(--paper) }
body { max-width: 64rem; margin: 2rem auto; padding: 0 1rem }
a { color: var(--link) } nav a { margin-right: 1rem } h1, td { overflow-wrap: anywhere }
table { border-collapse: collapse; margin: 1rem 0 }
td, th { border: 1px solid var(--rule); padding: .2rem .6rem; text-align: left }
pre { background: var(--soft); padding: 1rem; overflow: auto; font-size: 14px }
section { border-left: 4px solid var(--rule); padding-left: 1rem }
"""
_DATES = ("started", "authoredOn", "recorded", "birthDate")
_DIGEST = b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
POLICY = (
    f"default-src 'none'; style-src 'sha256-{_DIGEST}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_REFERENCE = re.compile(r"&quot;([A-Za-z]{1,64})/([A-Za-z0-9\-.]{1,64})((?:/_history/\d{1,18})?)&quot;")


def page(
    body: bytes,
    *,
    base_url: str,
    path: str,
    query: Sequence[tuple[str, str]] = (),
    more: Sequence[tuple[str, str]] = (),
) -> bytes:
    """Return the page of an answer in canonical JSON.

    base_url   of the FHIR door, for links
    path       address that was asked, below the host, encoded
    query      its parameters but for `_format`
    more       addresses and texts of further links
    """
    resource: Json = json.loads_trusted(body)
    title = escape(_title(resource))
    parts = [
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{title}</title><style>{STYLE}</style></head><body>",
        f"<h1>{title}</h1>",
        _navigation(resource, base_url, path, query, more),
        _narrative(resource),
        *_findings(resource),
        *_entries(resource, base_url),
        f"<h2>JSON</h2>{_json(body, base_url)}",
        "</body></html>\n",
    ]
    return "".join(parts).encode()


def _title(resource: Json) -> str:
    kind = str(resource.get("resourceType", ""))
    if kind == "Bundle":
        total = f", {resource['total']} in all" if "total" in resource else ""
        return f"Bundle: {resource.get('type', '')}{total}"
    return f"{kind}/{resource['id']}" if "id" in resource else kind


def _navigation(
    resource: Json, base_url: str, path: str, query: Sequence[tuple[str, str]], more: Sequence[tuple[str, str]]
) -> str:
    links = [("FHIR", f"{base_url}/metadata")]
    # A Bundle that is an answer has an id as well, but no version, and is not kept.
    is_kept = "versionId" in resource.get("meta", {})
    if _is_reference(str(resource.get("resourceType")), str(resource.get("id", ""))) and is_kept:
        key = f"{base_url}/{resource['resourceType']}/{resource['id']}"
        links += [("current version", key), ("history", f"{key}/_history")]
    links += [
        (str(each.get("relation", "")), str(each.get("url", "")))
        for each in resource.get("link", ())
        if resource.get("resourceType") == "Bundle"
    ]
    shown = [_link(url, text, base_url) for text, url in links]
    for form in ("json", "xml"):
        address = f"{path}?{urlencode([*query, ('_format', form)])}"
        shown.append(f'<a href="{escape(address)}">as {form.upper()}</a>')
    shown += [f'<a href="{escape(address)}">{escape(text)}</a>' for address, text in more]
    return f"<nav>{''.join(shown)}</nav>"


def _narrative(resource: Json) -> str:
    text = resource.get("text")
    div = text.get("div") if isinstance(text, dict) else None
    return f"<section>{div}</section>" if isinstance(div, str) and not narrative.problem(div) else ""


def _findings(resource: Json) -> Iterator[str]:
    if resource.get("resourceType") == "OperationOutcome":
        for issue in resource.get("issue", ()):
            told = escape(str(issue.get("diagnostics", "")))
            yield f"<p><strong>{escape(str(issue.get('severity', '')))}</strong>: {told}</p>"


def _entries(resource: Json, base_url: str) -> Iterator[str]:
    entries = resource.get("entry", []) if resource.get("resourceType") == "Bundle" else []
    if not entries:
        return
    yield "<table><tr><th>entry</th><th>what it is</th><th>version</th><th>last updated</th></tr>"
    for entry in entries[:MOST_ENTRIES]:
        inner = entry.get("resource", {})
        meta = inner.get("meta", {})
        name = str(entry.get("fullUrl", "")).removeprefix(f"{base_url}/") or str(inner.get("resourceType", ""))
        url = str(entry.get("fullUrl", ""))
        cells = (_words(inner), str(meta.get("versionId", "")), str(meta.get("lastUpdated", "")))
        yield f"<tr><td>{_link(url, name, base_url)}</td>" + "".join(f"<td>{escape(each)}</td>" for each in cells)
        yield "</tr>"
    yield "</table>"


def _words(resource: Json) -> str:
    """Return in a few words what people call a resource, when it was and how it stands, "" where it says nothing."""
    names = (_called(resource.get(element)) for element in ("description", "title", "name", "code", "type"))
    dates = (
        str(resource[each])[:10] for each in ("started", "authoredOn", "recorded", "birthDate") if each in resource
    )
    states = (str(resource[each]) for each in ("status", "gender") if each in resource)
    found = [next(filter(None, names), ""), next(dates, ""), next(states, "")]
    return ", ".join(each for each in found if each)[:MOST_WORDS]


def _called(value: Any) -> str:
    """Return the text of a string, a HumanName, a CodeableConcept or a Coding, or of the first of several."""
    if isinstance(value, list):
        return _called(value[0]) if value else ""
    if not isinstance(value, dict):
        return value if isinstance(value, str) else ""
    parts = [*value.get("given", ()), value.get("family")]
    told = (value.get("text"), value.get("display"), " ".join(str(each) for each in parts if each), value.get("code"))
    return next((str(each) for each in told if each), "") or _called(value.get("coding"))


def _link(url: str, text: str, base_url: str) -> str:
    """Return a link, or its text alone where it leads elsewhere."""
    is_ours = url == base_url or url.startswith((f"{base_url}/", f"{base_url}?"))
    return f'<a href="{escape(url)}">{escape(text)}</a>' if is_ours else escape(text)


def _json(body: bytes, base_url: str) -> str:
    if len(body) > MOST_SHOWN:
        return f"<p>These {len(body)} bytes are too many for a page; see them as JSON.</p>"

    def link(match: re.Match[str]) -> str:
        if not _is_reference(match[1], match[2]):
            return match[0]
        target = f"{match[1]}/{match[2]}{match[3]}"
        return f'&quot;<a href="{escape(base_url)}/{target}">{target}</a>&quot;'

    return f"<pre>{_REFERENCE.sub(link, escape(bundles.pretty(body).decode()))}</pre>"


def _is_reference(kind: str, identifier: str) -> bool:
    return kind in resource_types() and bool(identifier)
