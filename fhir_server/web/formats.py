"""In which form FHIR comes in and goes out: JSON or XML, negotiated by `_format`, Accept and Content-Type.

JSON goes out as the bytes that are stored; XML, and a page for browsers, are made of them. Large answers are compressed
for who takes that. Source: FHIR R4 http 3.1.0.1.10-11, json 2.6.2, xml 2.6.1.
"""

import gzip
import re
from enum import Enum
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl, quote

from flask import Request, Response, current_app, g, request

from fhir_server.model import json
from fhir_server.model.validation import MAX_DEPTH
from fhir_server.model.xml import from_xml, to_xml
from fhir_server.rest import bundles
from fhir_server.web import browse, visitors
from imaging.errors import AppError, Category

FHIR_JSON, FHIR_XML = "application/fhir+json", "application/fhir+xml"
JSON_TYPES = (FHIR_JSON, "application/json", "text/json")
XML_TYPES = (FHIR_XML, "application/xml", "text/xml")
FORM = "application/x-www-form-urlencoded"
RESOURCE_TYPES = (*JSON_TYPES, *XML_TYPES)
VERSIONS = ("4.0", "4.0.1")
COMPRESSED_ABOVE = 8 << 10  # bytes of an answer
COMPRESSION = 1  # of zlib: the quickest makes an answer about an eighth


class Form(Enum):
    """A form of answers, by its media type."""

    JSON = FHIR_JSON
    XML = FHIR_XML
    HTML = "text/html"


_FORMS: dict[str, Form] = {
    **dict.fromkeys((*JSON_TYPES, "json", "*/*", "application/*", "text/*"), Form.JSON),
    **dict.fromkeys((*XML_TYPES, "xml"), Form.XML),
    **dict.fromkeys(("text/html", "html"), Form.HTML),
}
_ONLY_ACCEPT = frozenset({"*/*", "application/*", "text/*"})  # no values of _format
_FHIR_VERSION = re.compile(r"fhirversion\s*=\s*\"?([\w.\-]+)", re.ASCII)


def check_accept() -> None:
    """Raise UNSUPPORTED (406) unless a form that is spoken here is welcome; `_format` wins over Accept."""
    if _wanted() is None:
        told = f"this server speaks {FHIR_JSON} and {FHIR_XML}, FHIR version 4.0"
        raise AppError(Category.UNSUPPORTED, told, where="Accept")


def shown(body: bytes, status: int = HTTPStatus.OK) -> Response:
    """Return canonical JSON in the form that is wanted; `_pretty` is for people."""
    form = _wanted() or Form.JSON
    is_pretty = _given("_pretty") == "true"
    if form is Form.HTML:
        query = [each for each in request.args.items(multi=True) if each[0] != "_format"]
        base_url = current_app.config["FHIR_URL"]
        body = browse.page(body, base_url=base_url, path=quote(request.path), query=query, more=visitors.links(status))
    elif form is Form.XML:
        body = to_xml(json.loads_trusted(body), indent=is_pretty)
    elif is_pretty:
        body = bundles.pretty(body)
    response = sent(body, f"{form.value}; charset=utf-8", status)
    response.vary.add("Accept")
    if form is Form.HTML:
        response.headers["Content-Security-Policy"] = browse.POLICY
    return response


def sent(body: bytes, content_type: str, status: int = HTTPStatus.OK) -> Response:
    """Return a response, compressed where it is large and the client takes that."""
    response = Response(status=status, content_type=content_type)
    response.vary.add("Accept-Encoding")
    if len(body) > COMPRESSED_ABOVE and request.accept_encodings["gzip"] > 0:
        body = gzip.compress(body, COMPRESSION, mtime=0)
        response.content_encoding = "gzip"
    response.set_data(body)
    return response


def check_address() -> None:
    """Raise INVALID for an address whose parameters are not UTF-8: what cannot be read may be a criterion."""
    parameters_of(request.query_string, where="url")


def form_of(incoming: Request, *, most_bytes: int) -> tuple[tuple[str, str], ...]:
    """Return the parameters of a form, in their order, none for no body. `_format` and `_pretty` in it count.

    Raises UNSUPPORTED for another media type, TOO_LARGE, and INVALID for what is not UTF-8.
    """
    check_content_type(incoming, (FORM,))
    body = b"" if is_empty(incoming) else body_of(incoming, most_bytes=most_bytes)
    found = parameters_of(body, where="body")
    g.form = dict(found)
    return found


def parameters_of(text: bytes, *, where: str) -> tuple[tuple[str, str], ...]:
    """Return the parameters of a query string or a form. Raises INVALID, where Flask leaves out or replaces."""
    try:
        return tuple(parse_qsl(text.decode(), keep_blank_values=True, errors="strict"))
    except UnicodeDecodeError:
        raise AppError(Category.INVALID, "the parameters have to be in UTF-8", where=where) from None


def received(incoming: Request, *, most_bytes: int, more_levels: int = 0) -> Any:
    """Return the resource, or the patch, that was sent.

    more_levels   of nesting around what may be nested as deep as a resource may
    Raises TOO_LARGE, and INVALID for anything that is not strict JSON or XML: broken UTF-8, names twice, NaN, document
    types, nesting beyond what validation takes.
    """
    data = body_of(incoming, most_bytes=most_bytes)
    if incoming.mimetype in XML_TYPES:
        return from_xml(data, most_levels=MAX_DEPTH + more_levels)
    value = json.loads(data)
    if not isinstance(value, dict | list):
        raise AppError(Category.INVALID, "a resource is a JSON object, and a JSON Patch a list", where="body")
    json.check_depth(value, MAX_DEPTH + more_levels)
    return value


def body_of(incoming: Request, *, most_bytes: int) -> bytes:
    """Return the body. Raises TOO_LARGE, and INVALID for none."""
    data = b"" if (incoming.content_length or 0) > most_bytes else incoming.stream.read(most_bytes + 1)
    if (incoming.content_length or 0) > most_bytes or len(data) > most_bytes:
        raise AppError(Category.TOO_LARGE, f"the body is larger than {most_bytes} bytes", where="body")
    if not data.strip():
        raise AppError(Category.INVALID, "the request has no body", where="body")
    return data


def is_empty(incoming: Request) -> bool:
    """Say whether a request announces that it has no body: operations without parameters are invoked so."""
    return not incoming.content_length and "Transfer-Encoding" not in incoming.headers


def check_content_type(incoming: Request, accepted: tuple[str, ...]) -> None:
    """Raise UNSUPPORTED (415) unless the body is of one of the accepted media types, in UTF-8, and not compressed."""
    if incoming.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise AppError(Category.UNSUPPORTED, "the body has to come without encoding", where="Content-Type")
    if incoming.mimetype not in accepted:
        message = f"the body has to be {' or '.join(accepted)}"
        raise AppError(Category.UNSUPPORTED, message, where="Content-Type")
    if incoming.mimetype_params.get("charset", "utf-8").lower() not in ("utf-8", "utf8"):
        raise AppError(Category.UNSUPPORTED, "the body has to be in UTF-8", where="Content-Type")
    version = incoming.mimetype_params.get("fhirversion", VERSIONS[0])
    if version not in VERSIONS:
        raise AppError(Category.UNSUPPORTED, "the body has to be of FHIR version 4.0", where="Content-Type")


def _wanted() -> Form | None:
    """Return the form that is wanted most, None where none is spoken here."""
    given = _given("_format")
    if given is not None:
        # An unescaped plus arrives as a space.
        name = given.partition(";")[0].strip().replace(" ", "+").lower()
        return _FORMS.get(name) if name not in _ONLY_ACCEPT and _is_our_version(given.lower()) else None
    if not request.headers.get("Accept", "").strip():
        return Form.JSON
    for media, quality in sorted(request.accept_mimetypes, key=lambda each: -each[1]):
        form = _FORMS.get(media.partition(";")[0].strip().lower())
        if quality > 0 and form and _is_our_version(media.lower()):
            return form
    return None


def _given(name: str) -> str | None:
    """Return what the address says, or else a form: searches by POST and by GET are the same. FHIR R4 http 3.1.0.9."""
    form: dict[str, str] = g.get("form", {})
    return request.args.get(name, form.get(name))


def _is_our_version(media: str) -> bool:
    version = _FHIR_VERSION.search(media.partition(";")[2])
    return version is None or version[1] in VERSIONS
