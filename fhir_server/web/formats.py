"""In which form a FHIR answer goes out: negotiated by `_format` and Accept. Source: FHIR R4 http 3.1.0.1.10-11."""

import re
from http import HTTPStatus

from flask import Response, request

from fhir_server.rest import bundles
from fhir_server.web.http import FHIR_JSON, fhir_response
from imaging.errors import AppError, Category

JSON_TYPES = (FHIR_JSON, "application/json", "text/json")
FORMATS = frozenset({"json", *JSON_TYPES})  # of _format
ACCEPTED = frozenset({*JSON_TYPES, "*/*", "application/*", "text/*", "text/html"})
VERSIONS = ("4.0", "4.0.1")

_FHIR_VERSION = re.compile(r"fhirversion\s*=\s*\"?([\w.\-]+)", re.ASCII)


def check_accept() -> None:
    """Raise UNSUPPORTED (406) unless JSON of FHIR 4.0 is welcome; `_format` wins over Accept."""
    wanted = request.args.get("_format")
    if wanted is not None:
        # An unescaped plus arrives as a space.
        if wanted.partition(";")[0].strip().replace(" ", "+").lower() not in FORMATS:
            raise AppError(Category.UNSUPPORTED, f"_format: this server speaks {FHIR_JSON}", where="Accept")
        return
    if not request.headers.get("Accept", "").strip():
        return
    if not any(_is_welcome(media.lower()) for media, quality in request.accept_mimetypes if quality > 0):
        raise AppError(Category.UNSUPPORTED, f"this server speaks {FHIR_JSON}, FHIR version 4.0", where="Accept")


def shown(body: bytes, status: HTTPStatus = HTTPStatus.OK) -> Response:
    """Return a FHIR response; `_pretty` is for people."""
    is_pretty = request.args.get("_pretty") == "true"
    return fhir_response(bundles.pretty(body) if is_pretty else body, status)


def _is_welcome(media: str) -> bool:
    name, _, parameters = media.partition(";")
    version = _FHIR_VERSION.search(parameters)
    return name.strip() in ACCEPTED and (version is None or version[1] in VERSIONS)
