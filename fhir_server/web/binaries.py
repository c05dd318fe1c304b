"""Binary resources as what they hold: content that comes in as it is, and goes out so unless FHIR is asked for.

Source: FHIR R4 Binary 2.40.1-2.40.3, http 3.1.0.1.10. Who may read one that has a security context is the repository's
business.
"""

import base64
import re
from typing import Any

from flask import Response, request

from fhir_server.model import json
from fhir_server.rest.asks import Answer, to_http_date
from fhir_server.web.formats import RESOURCE_TYPES, body_of
from imaging.errors import AppError, Category

CONTEXT = "X-Security-Context"  # reference of the resource whose readers may read the content
OCTETS = "application/octet-stream"
_NAME = r"[\w!#$&^.+\-]{1,127}"
_PARAMETER = r"\s?;\s?[\w.\-]{1,64}=(\"[^\"\\\r\n]{0,200}\"|[\w.+\-]{1,200})"
_MEDIA = re.compile(f"{_NAME}/{_NAME}({_PARAMETER})*", re.ASCII)


def is_content() -> bool:
    """Say whether the request's body is the content of a Binary, and not the resource in a form of FHIR."""
    return bool(request.mimetype) and request.mimetype not in RESOURCE_TYPES


def received(identifier: str, *, most_bytes: int) -> dict[str, Any]:
    """Return the Binary whose content was sent.

    most_bytes   of the resource, in which content takes a third more than by itself
    Raises TOO_LARGE, INVALID for no content or a reference that is none, UNSUPPORTED for content with an encoding.
    """
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise AppError(Category.UNSUPPORTED, "the body has to come without encoding", where="Content-Type")
    media = request.headers.get("Content-Type", "").strip()
    if _MEDIA.fullmatch(media) is None:
        raise AppError(Category.UNSUPPORTED, "the content's media type is wanted", where="Content-Type")
    content = body_of(request, most_bytes=most_bytes * 3 // 4)
    made: dict[str, Any] = {"resourceType": "Binary"}
    if identifier:
        made["id"] = identifier
    made["contentType"] = media
    if context := request.headers.get(CONTEXT, "").strip():
        made["securityContext"] = {"reference": context}
    return {**made, "data": base64.b64encode(content).decode()}


def is_content_wanted() -> bool:
    """Say whether the content is wanted: FHIR is not, neither by `_format` nor by name in Accept."""
    if "_format" in request.args:
        return False
    return not any(media.partition(";")[0].strip().lower() in RESOURCE_TYPES for media, _ in request.accept_mimetypes)


def content(answer: Answer) -> Response:
    """Return the content of the Binary in an answer. Raises UNSUPPORTED (406) where another media type is wanted."""
    response = Response(status=answer.status)
    if answer.body:
        resource = json.loads_trusted(answer.body)
        media = str(resource.get("contentType", ""))
        media = media if _MEDIA.fullmatch(media) else OCTETS
        wanted = request.accept_mimetypes
        if wanted and not wanted[media.partition(";")[0].strip()]:
            raise AppError(Category.UNSUPPORTED, f"the content is {media}", where="Accept")
        response = Response(base64.b64decode(resource.get("data", "")), answer.status, content_type=media)
        if context := resource.get("securityContext", {}).get("reference"):
            response.headers[CONTEXT] = context
    # Whatever somebody stored here is shown by itself: it runs nothing.
    response.headers["Content-Security-Policy"] = "sandbox; default-src 'none'"
    response.vary.add("Accept")
    if answer.version:
        response.headers["ETag"] = answer.version.etag
        response.headers["Last-Modified"] = to_http_date(answer.version.last_updated)
    return response
