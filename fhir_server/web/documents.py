"""Rendered documents: reports as text, encapsulated documents and videos as what they are.

What a browser could run is never given as such: only the types of encapsulated documents that the standard names are,
and all of them come sandboxed. Sources: PS3.18 8.7.4, PS3.3 A.45 (Encapsulated Document IODs).
"""

from collections.abc import Mapping
from typing import Any

from flask import Response

from fhir_server.access.audit import Access
from fhir_server.web.dicom_answers import REVALIDATE, digest, not_modified, ranged, sliced, validated
from fhir_server.web.dicom_door import Visit
from imaging.archive import Instance
from imaging.dicomweb import Choice, Offer
from imaging.dicomweb.negotiation import MEDIA_TYPE_OF_TRANSFER_SYNTAX
from imaging.display import number_of, values_of
from imaging.errors import AppError, Category
from imaging.frames import read_fragments
from imaging.report_text import as_html, as_plain, is_report

Document = Mapping[str, Any]

HEVC = ("1.2.840.10008.1.2.4.107", "1.2.840.10008.1.2.4.108")

REPORT_OFFERS = (Offer("text/html"), Offer("text/plain"))
# MIME Type of Encapsulated Document (0042,0012), in lower case -> the media type that it is sent as
ENCAPSULATED = {
    "application/pdf": "application/pdf",
    "text/xml": "text/xml",  # CDA
    "model/stl": "model/stl",
    "model/obj": "model/obj",
    "model/mtl": "model/mtl",
}
# transfer syntax -> media type of the stream as it is stored, whether MP4 or transport stream; PS3.18 table 8.7.4-1
VIDEO = {
    uid: "video/mpeg" if media_type == "video/mpeg2" else media_type
    for uid, media_type in {**MEDIA_TYPE_OF_TRANSFER_SYNTAX, **dict.fromkeys(HEVC, "video/mp4")}.items()
    if media_type.startswith("video/")
}
_MEDIA_TYPE, _LENGTH = "00420012", "00420015"
VERSION = 1  # of how reports look


def offers_of(instance: Instance, document: Document) -> tuple[Offer, ...]:
    """Return what an instance can be rendered as other than as pictures; nothing where it cannot."""
    if is_report(document):
        return REPORT_OFFERS
    if instance.stored_transfer_syntax_uid in VIDEO:
        return (Offer(VIDEO[instance.stored_transfer_syntax_uid]),)
    told = str(next(iter(values_of(document, _MEDIA_TYPE)), "")).strip().lower()
    return (Offer(ENCAPSULATED[told]),) if told in ENCAPSULATED else ()


def rendered(
    visit: Visit,
    instance: Instance,
    document: Document,
    choice: Choice,
    access: Access = Access.RETRIEVE,
) -> Response:
    """Return an instance as one of its offers."""
    tag = digest("document", VERSION, choice, instance.sha256_received, visit.images.decided(instance.study_uid))
    if unchanged := not_modified(tag, REVALIDATE):
        return unchanged
    visit.retrieved(access=access)
    if choice.media_type in [offer.media_type for offer in REPORT_OFFERS]:
        text = (as_html if choice.media_type == "text/html" else as_plain)(document)
        response = validated(Response(text, content_type=f"{choice.media_type}; charset=utf-8"), tag, REVALIDATE)
    else:
        pieces = (_film if instance.stored_transfer_syntax_uid in VIDEO else _enclosed)(visit, instance, document)
        length = sum(map(len, pieces))
        chunks = (chunk for piece in pieces for chunk in sliced(piece))
        response = Response(chunks, content_type=choice.media_type)
        response.content_length = length
        response = ranged(validated(response, tag, REVALIDATE), length)
    response.headers["Content-Security-Policy"] = "sandbox; default-src 'none'; style-src 'unsafe-inline'"
    return response


def _enclosed(visit: Visit, instance: Instance, document: Document) -> list[memoryview]:
    """Return an encapsulated document without what pads it."""
    value = memoryview(visit.images.bulkdata(instance, "bulkdata/00420011"))
    length = int(number_of(document, _LENGTH) or len(value))
    if not 0 <= length <= len(value):
        raise AppError(Category.INVALID, "the document is shorter than it says", where="(0042,0015)")
    return [value[:length]]


def _film(visit: Visit, instance: Instance, document: Document) -> list[memoryview]:
    """Return a video stream, which lies in fragments. Source: PS3.5 8.2.5 to 8.2.12."""
    value = memoryview(visit.images.bulkdata(instance, "bulkdata/7FE00010"))
    fragments = read_fragments(value, 0, len(value))[1]
    return [value[start : start + length] for start, length in fragments]
