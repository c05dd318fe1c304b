"""People who come to FHIR addresses with a browser: who is signed in may look at pages, without a token.

Only what they go to themselves, and only reading: no script asks in their name, and nothing is changed. What they see
is what their role and the contracts of their subscriber allow.
Source: Fetch Metadata Request Headers (W3C), which browsers send to safe addresses.
"""

from http import HTTPStatus

from flask import g, request, url_for


def welcome() -> None:
    """Say that the request at hand reads, and may be of who is signed in in this browser, where a browser asks."""
    is_visit = request.method == "GET" and request.headers.get("Sec-Fetch-Mode", "navigate") == "navigate"
    wants_page = any(kind == "text/html" and quality > 0 for kind, quality in request.accept_mimetypes)
    g.is_visit = is_visit and wants_page and "Authorization" not in request.headers


def is_visit() -> bool:
    """Say whether who is signed in in this browser may have what is asked; otherwise a token is needed."""
    return bool(g.get("is_visit"))


def links(status: int) -> list[tuple[str, str]]:
    """Return address and text of what a page leads to besides: to sign in, or to the account."""
    if not is_visit():
        return []
    if status == HTTPStatus.UNAUTHORIZED:
        return [(url_for("people.sign_in", next=request.full_path), "sign in")]
    return [(url_for("people.home"), "your account")]
