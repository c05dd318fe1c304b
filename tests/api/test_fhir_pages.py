"""Pages for browsers that open a FHIR address. Expected values: FHIR R4 http 3.1.0.1.10, W3C CSP3, HTML."""

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import pytest
from pymongo.database import Database

from fhir_server.web import browse
from tests.support.doors import BASE_URL, FHIR, Caller, Doors, opened

# What Firefox and Chrome send.
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"
EVIL = '"><script>alert(1)</script>'
DIV = '<div xmlns="http://www.w3.org/1999/xhtml"><p>a <b>man</b></p></div>'


class Page(HTMLParser):
    """The elements and links of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[str] = []
        self.attributes: set[str] = set()
        self.links: list[str] = []
        self.metas: list[tuple[str | None, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        self.attributes |= {name for name, _ in attrs}
        self.metas += [(dict(attrs).get("name"), dict(attrs).get("content"))] if tag == "meta" else []
        self.links += [value or "" for name, value in attrs if name in ("href", "src")]


@pytest.fixture(scope="module")
def doors(module_db: Database[dict[str, Any]]) -> Iterator[Doors]:
    with opened(module_db) as made:
        yield made


def made(both: Caller, **content: Any) -> str:
    created = both.post("/fhir/Patient", {"resourceType": "Patient", **content})
    assert created.status_code == 201, created.text
    return f"/fhir/Patient/{created.json['id']}"


def opened_page(caller: Caller, path: str, status: int = 200) -> Page:
    response = caller.get(path, headers={"Accept": BROWSER})
    assert (response.status_code, response.content_type) == (status, "text/html; charset=utf-8")
    return Page(response.text)


def test_a_browser_gets_a_page_with_links_to_what_is_referred_to(both):
    address = made(both, managingOrganization={"reference": "Organization/1"}, text={"status": "generated", "div": DIV})

    page = opened_page(both, address)

    key = address.removeprefix("/fhir")
    assert {f"{FHIR}/Organization/1", f"{FHIR}{key}/_history", f"{address}?_format=xml"} <= set(page.links)
    assert "b" in page.elements  # the narrative is shown


def test_a_search_is_a_table_with_links_that_lead_on(both):
    addresses = {made(both).removeprefix("/fhir") for _ in range(3)}

    page = opened_page(both, "/fhir/Patient?_count=2")

    assert any("_cursor" in link for link in page.links)
    assert "/fhir/Patient?_count=2&_format=json" in page.links
    assert {f"{FHIR}{address}" for address in addresses} & set(page.links)
    assert "table" in page.elements
    assert {both.get(link.removeprefix(BASE_URL)).status_code for link in page.links} == {200}


def test_an_error_is_a_page_too(doors: Doors, both):
    assert "strong" in opened_page(both, "/fhir/Patient/unknown", 404).elements
    refused = doors.stranger.get("/fhir/Patient", headers={"Accept": BROWSER})
    assert (refused.status_code, refused.mimetype) == (401, "text/html")
    assert "bearer token" in refused.text
    assert refused.headers["WWW-Authenticate"].startswith("Bearer")


def test_the_statement_may_be_looked_at_without_a_token(doors: Doors):
    assert f"{FHIR}/metadata" in opened_page(doors.stranger, "/fhir/metadata").links


def test_the_first_page_needs_no_token_and_links_to_what_is_open_to_all(doors):
    page = opened_page(doors.stranger, "/")

    open_to_all = ["/fhir/metadata", "/fhir/.well-known/smart-configuration", "/health/ready"]
    assert {"/auth/sign-in", *(f"{BASE_URL}{path}" for path in open_to_all)} <= set(page.links)
    assert [doors.stranger.get(path).status_code for path in open_to_all] == [200] * 3


def test_pages_fit_a_phone(both):
    page = opened_page(both, made(both))

    assert ("viewport", "width=device-width, initial-scale=1") in page.metas


def test_a_page_has_no_script_and_may_load_nothing(both):
    response = both.get(f"{made(both)}?_format=html")

    policy = response.headers["Content-Security-Policy"]
    style = re.search(r"<style>(.*?)</style>", response.text, re.S)[1]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy.startswith("default-src 'none';")
    assert f"style-src 'sha256-{digest}'" in policy
    assert "script" not in Page(response.text).elements
    assert response.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize("path", ["/fhir/Patient?name:exact=%22%3E%3Cscript%3E", "/fhir/Patient/%22%3E%3Cscript%3E"])
def test_nothing_of_the_address_becomes_markup(both, path):
    response = both.get(path, headers={"Accept": BROWSER})

    assert "script" not in Page(response.text).elements


def test_nothing_of_a_resource_becomes_markup_or_leads_elsewhere(both):
    address = made(
        both,
        name=[{"family": EVIL, "text": "javascript:alert(1)"}],
        photo=[{"url": "http://evil.test/x", "title": EVIL}],
        generalPractitioner=[{"reference": "http://evil.test/Practitioner/1"}],
    )

    for path in (address, "/fhir/Patient", f"{address}/_history"):
        page = opened_page(both, path)
        assert "script" not in page.elements
        assert page.attributes <= {"href", "lang", "charset", "name", "content"}
        assert len([meta for meta in page.metas if meta != (None, None)]) == 1  # the viewport, by which those come
        assert [link for link in page.links if not link.startswith(("/fhir/", FHIR))] == []


def test_a_narrative_from_before_they_were_checked_is_not_shown():
    body = b'{"resourceType":"Basic","text":{"status":"generated","div":"<div><script>alert(1)</script></div>"}}'

    page = Page(browse.page(body, base_url=FHIR, path="/fhir/Basic/1").decode())

    assert "script" not in page.elements


@pytest.mark.parametrize("accept", ["*/*", "application/json, text/html;q=0.9", "", "application/json, */*"])
def test_programs_get_json(both, accept):
    assert both.get(made(both), headers={"Accept": accept}).mimetype == "application/fhir+json"


def test_a_very_large_answer_is_behind_a_link(both):
    page = opened_page(both, made(both, name=[{"text": "x" * 1_000_000}, {"text": "y" * 100_000}]))

    assert "pre" not in page.elements


@pytest.mark.parametrize(
    ("resource", "words"),
    [
        ({"name": [{"given": ["Ann", "B."], "family": "Roe"}], "birthDate": "1970-05-01"}, "Ann B. Roe, 1970-05-01"),
        ({"name": [{"text": "Dr. Roe"}], "gender": "female"}, "Dr. Roe, female"),
        ({"description": "CT chest", "started": "2024-03-01T10:00:00Z", "status": "available"},
         "CT chest, 2024-03-01, available"),
        ({"code": {"coding": [{"code": "process", "display": "Process images"}]}, "status": "completed"},
         "Process images, completed"),
        ({"type": {"system": "http://x", "code": "110100"}, "recorded": "2024-03-01T10:00:00Z"}, "110100, 2024-03-01"),
        ({"name": "St. Mary", "code": []}, "St. Mary"),
        ({"title": "x" * 500}, "x" * 200),
        ({"name": [], "code": 7, "type": {"coding": 1}, "description": None}, ""),
        ({"name": [EVIL]}, '&quot;&gt;&lt;script&gt;alert(1)&lt;/script&gt;'),
    ],
)  # fmt: skip
def test_an_entry_is_told_in_a_few_words(resource: dict[str, Any], words: str):
    bundle = {"resourceType": "Bundle", "type": "searchset", "entry": [{"resource": resource}]}

    page = browse.page(json.dumps(bundle).encode(), base_url=FHIR, path="/fhir/Patient").decode()

    assert f"<td>{words}</td>" in page
