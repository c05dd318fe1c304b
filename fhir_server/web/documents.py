"""Rendered documents: reports as text, encapsulated documents as what they are.

What a browser could run is never given as such: only the types of encapsulated documents that the standard names are,
and all of them come sandboxed. Sources: PS3.18 8.7.4, PS3.3 A.45 (Encapsulated Document IODs).
"""

from collections.abc import Mapping
from typing import Any

from flask import Response

from fhir_server.access.audit import Access
from fhir_server.access.principals import Principal
from fhir_server.web.dicom_answers import IMMUTABLE, Door, digest, not_modified, ranged, sliced, validated
from imaging.archive import Instance
from imaging.dicomweb import Choice, Offer
from imaging.display import number_of, values_of
from imaging.errors import AppError, Category
from imaging.report_text import as_html, as_plain, is_report

Document = Mapping[str, Any]

REPORT_OFFERS = (Offer("text/html"), Offer("text/plain"))
# MIME Type of Encapsulated Document (0042,0012), in lower case -> the media type that it is sent as
ENCAPSULATED = {
    "application/pdf": "application/pdf",
    "text/xml": "text/xml",  # CDA
    "model/stl": "model/stl",
    "model/obj": "model/obj",
    "model/mtl": "model/mtl",
}
_MEDIA_TYPE, _LENGTH = "00420012", "00420015"
VERSION = 1  # of how reports look


def offers_of(document: Document) -> tuple[Offer, ...]:
    """Return what an instance without pixels can be rendered as; nothing for what is no document."""
    if is_report(document):
        return REPORT_OFFERS
    told = str(next(iter(values_of(document, _MEDIA_TYPE)), "")).strip().lower()
    return (Offer(ENCAPSULATED[told]),) if told in ENCAPSULATED else ()


def rendered(
    door: Door,
    principal: Principal,
    instance: Instance,
    document: Document,
    choice: Choice,
    access: Access = Access.RETRIEVE,
) -> Response:
    """Return an instance as one of its offers."""
    tag = digest("document", VERSION, choice, instance.sha256_received)
    if unchanged := not_modified(tag, IMMUTABLE):
        return unchanged
    door.retrieved(principal, instance.study_uid, access=access)
    if choice.media_type in [offer.media_type for offer in REPORT_OFFERS]:
        text = (as_html if choice.media_type == "text/html" else as_plain)(document)
        response = validated(Response(text, content_type=f"{choice.media_type}; charset=utf-8"), tag, IMMUTABLE)
    else:
        value = memoryview(door.server.archive.bulkdata(instance, "bulkdata/00420011"))
        length = int(number_of(document, _LENGTH) or len(value))
        if not 0 <= length <= len(value):
            raise AppError(Category.INVALID, "the document is shorter than it says", where="(0042,0015)")
        response = Response(sliced(value[:length]), content_type=choice.media_type)
        response.content_length = length
        response = ranged(validated(response, tag, IMMUTABLE), length)
    response.headers["Content-Security-Policy"] = "sandbox; default-src 'none'; style-src 'unsafe-inline'"
    return response
