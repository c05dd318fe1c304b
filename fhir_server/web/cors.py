"""Cross-origin requests: which web pages of other origins may call the doors. Off unless the operator names origins.

No cookies are involved: a page needs a token like everybody else. Source: WHATWG Fetch, CORS protocol; FHIR R4 http
3.1.0.1.2.
"""

from http import HTTPStatus

from flask import Flask, Response, request

METHODS = "GET, HEAD, POST, PUT, PATCH, DELETE"
HEADERS = (
    "Accept, Authorization, Content-Type, If-Match, If-Modified-Since, If-None-Exist, If-None-Match, Origin, Prefer, "
    "X-Request-Id, X-Requested-With"
)
EXPOSED = "Content-Location, ETag, Last-Modified, Link, Location, Retry-After, Warning, X-Progress, X-Request-Id"
KEPT_S = 600  # a browser may believe the answer for so long


def install(app: Flask, origins: frozenset[str]) -> None:
    """Let pages of these origins call; `*` stands for every origin."""
    if not origins:
        return

    def is_allowed() -> bool:
        return "*" in origins or request.headers.get("Origin", "") in origins

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
        response.vary.add("Origin")
        if "Origin" in request.headers and is_allowed():
            allowed = "*" if "*" in origins else request.headers["Origin"]
            response.headers["Access-Control-Allow-Origin"] = allowed
            response.headers["Access-Control-Expose-Headers"] = EXPOSED
        return response

    app.before_request(preflight)
    app.after_request(allow)
