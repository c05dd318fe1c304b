"""Cross-origin requests: which web pages of other origins may call the doors: those of registered apps, and of origins
that the operator names.

No cookies are involved: a page needs a token like everybody else. Source: WHATWG Fetch, CORS protocol; FHIR R4 http
3.1.0.1.2.
"""

from collections.abc import Callable
from http import HTTPStatus

from flask import Flask, Response, request

FOR_ALL = "/fhir/metadata"  # SMART App Launch 2.2: pages of every origin may read what is public anyway
METHODS = "GET, HEAD, POST, PUT, PATCH, DELETE"
HEADERS = (
    "Accept, Authorization, Content-Type, If-Match, If-Modified-Since, If-None-Exist, If-None-Match, Origin, Prefer, "
    "X-Request-Id, X-Requested-With"
)
EXPOSED = "Content-Location, ETag, Last-Modified, Link, Location, Retry-After, Warning, X-Progress, X-Request-Id"
KEPT_S = 600  # a browser may believe the answer for so long


def install(app: Flask, origins: frozenset[str], is_of_app: Callable[[str], bool]) -> None:
    """Let pages of these origins call; `*` stands for every origin.

    is_of_app   says whether an origin is that of an app that was registered: its pages may call too
    """

    def is_allowed() -> bool:
        origin = request.headers.get("Origin", "")
        return bool(origin) and (request.path == FOR_ALL or "*" in origins or origin in origins or is_of_app(origin))

    def preflight() -> Response | None:
        """Answer a browser that asks first. It sends no token, and learns only what is said here."""
        if request.method != "OPTIONS" or "Access-Control-Request-Method" not in request.headers or not is_allowed():
            return None
        response = Response(status=HTTPStatus.NO_CONTENT)
        response.headers["Access-Control-Allow-Methods"] = METHODS
        response.headers["Access-Control-Allow-Headers"] = HEADERS
        response.headers["Access-Control-Max-Age"] = str(KEPT_S)
        return response

    def allow(response: Response) -> Response:
        if "Access-Control-Allow-Origin" in response.headers:
            return response  # for everybody
        response.vary.add("Origin")
        if is_allowed():
            allowed = "*" if "*" in origins else request.headers["Origin"]
            response.headers["Access-Control-Allow-Origin"] = allowed
            response.headers["Access-Control-Expose-Headers"] = EXPOSED
        return response

    app.before_request(preflight)
    app.after_request(allow)
