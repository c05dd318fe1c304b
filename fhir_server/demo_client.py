"""A small HTTP client for the demo: one kept-alive connection, a bearer token, and how long each answer took."""

import http.client
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import orjson

from imaging.errors import AppError, Category

BOUNDARY = "fhir-imaging-demo-6d1f0a"
TIMEOUT_S = 120


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer: status, headers (names in lower case), body, and the seconds from request to last byte."""

    status: int
    headers: dict[str, str]
    body: bytes
    seconds: float

    def checked(self) -> "Reply":
        """Return the reply itself. Raises FAULT when it is no success."""
        if self.status >= 400:
            raise AppError(Category.FAULT, f"the server answered {self.status}: {self.body[:300]!r}", where="demo")
        return self


class Client:
    """Speaks to one server as one subscriber."""

    def __init__(self, base_url: str, token: str) -> None:
        self._base = urlsplit(base_url)
        self._authorization = {"Authorization": f"Bearer {token}"} if token else {}
        self._connection = http.client.HTTPConnection(
            self._base.hostname or "", self._base.port or 80, timeout=TIMEOUT_S
        )

    def get(self, path: str, accept: str = "*/*") -> Reply:
        """Fetch `path`, which begins with a slash."""
        return self._ask("GET", path, {"Accept": accept}, None)

    def create(self, resource: Mapping[str, Any]) -> Reply:
        """Create a FHIR resource."""
        headers = {"Content-Type": "application/fhir+json", "Accept": "application/fhir+json"}
        return self._ask("POST", f"/fhir/{resource['resourceType']}", headers, orjson.dumps(resource))

    def store(self, files: Sequence[bytes]) -> Reply:
        """Send Part 10 files in one STOW-RS request."""
        parts = [f"--{BOUNDARY}\r\nContent-Type: application/dicom\r\n\r\n".encode() + data + b"\r\n" for data in files]
        kind = f'multipart/related; type="application/dicom"; boundary={BOUNDARY}'
        headers = {"Content-Type": kind, "Accept": "application/dicom+json"}
        return self._ask("POST", "/dicom-web/studies", headers, b"".join(parts) + f"--{BOUNDARY}--\r\n".encode())

    def path_of(self, url: str) -> str:
        """Return path and query of a link that the server gave."""
        told = urlsplit(url)
        return told.path + (f"?{told.query}" if told.query else "")

    def _ask(self, method: str, path: str, headers: dict[str, str], body: bytes | None) -> Reply:
        started = time.perf_counter()
        try:
            self._connection.request(method, path, body, {**self._authorization, **headers})
            response = self._connection.getresponse()
            data = response.read()
        except (OSError, http.client.HTTPException):
            self._connection.close()
            raise
        told = {name.lower(): value for name, value in response.getheaders()}
        return Reply(response.status, told, data, time.perf_counter() - started)
