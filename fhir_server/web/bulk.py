"""All pixel data, and all bulk data, of a study, a series or an instance, as parts of one answer.

Each part says in its Content-Location which frame or which value it is: the addresses that metadata and frames have.
Source: PS3.18 tables 10.4.1-4 (bulkdata resources) and 10.4.1-5 (pixel data resources).
"""

from collections.abc import Iterator, Mapping
from typing import Any

import orjson
from flask import Response

from fhir_server.web.dicom_answers import (
    REVALIDATE,
    Part,
    choose,
    chooser,
    decoding,
    digest,
    multipart,
    not_modified,
    sliced,
    streamed,
    validated,
)
from fhir_server.web.dicom_door import Door, Visit
from fhir_server.web.dicom_forms import Pixels, frame_syntax, offers_of_frames, pixels_of
from fhir_server.web.wado import PIXEL_TAGS, VERSION, held
from imaging.archive import Instance
from imaging.dicomweb import Choice, Offer
from imaging.dicomweb.negotiation import OCTET_STREAM, part_content_type
from imaging.errors import AppError, Category
from imaging.syntaxes import EXPLICIT_VR_LITTLE_ENDIAN

BULKDATA_OFFERS = (Offer(OCTET_STREAM, True, (EXPLICIT_VR_LITTLE_ENDIAN,)),)
_PLACEHOLDER = "@/"


def retrieve_pixeldata(
    door: Door, study_uid: str, series_uid: str | None = None, sop_uid: str | None = None
) -> Response:
    """GET every frame of a study, a series or an instance, as stored or transcoded."""
    visit = door.admit(study_uid)
    found = held(visit, study_uid, series_uid, sop_uid)
    samples = [each for each in found.samples if each.frames]
    if not samples:
        raise AppError(Category.NOT_FOUND, "there is no pixel data", where=sop_uid or series_uid or study_uid)
    forms = _FrameForms()
    choice = forms(samples[0])
    syntaxes = sorted(frame_syntax(forms(each), each) for each in samples)
    tag = digest("pixeldata", VERSION, choice, series_uid, found.version, *syntaxes)
    if unchanged := not_modified(tag, REVALIDATE):
        return unchanged
    visit.retrieved(len(found.uids))
    instances = (each for each in visit.images.each(found.uids) if each.frames)
    parts = (part for each in instances for part in _frames(visit, each, forms(each)))
    with decoding():
        response = streamed(multipart(parts, tag), choice.content_type(tag))
    return visit.told(validated(response, tag, REVALIDATE))


def retrieve_bulkdata(
    door: Door, study_uid: str, series_uid: str | None = None, sop_uid: str | None = None
) -> Response:
    """GET every value that the metadata of what is addressed refers to; pixel data comes frame by frame."""
    visit = door.admit(study_uid)
    found = held(visit, study_uid, series_uid, sop_uid)
    choice = choose(BULKDATA_OFFERS)
    tag = digest("all bulkdata", VERSION, choice, series_uid, found.version)
    if unchanged := not_modified(tag, REVALIDATE):
        return unchanged
    visit.retrieved(len(found.uids))
    instances = zip(visit.images.each(found.uids), visit.images.documents(found.uids), strict=True)
    parts = (part for each, json in instances for part in _values(visit, each, orjson.loads(json)))
    with decoding():
        response = streamed(multipart(parts, tag), choice.content_type(tag))
    return visit.told(validated(response, tag, REVALIDATE))


class _FrameForms:
    """How the request at hand wants the frames of each instance: all in the media type of the first."""

    def __init__(self) -> None:
        self._choose = chooser()
        self._media_type = ""

    def __call__(self, instance: Instance) -> Choice:
        offers = offers_of_frames(instance, single=False)
        choice = self._choose(each for each in offers if self._media_type in ("", each.media_type))
        self._media_type = choice.media_type
        return choice


def _frames(visit: Visit, instance: Instance, choice: Choice) -> Iterator[Part]:
    syntax = frame_syntax(choice, instance)
    base = visit.door.address(instance.study_uid, instance.series_uid, instance.sop_uid)
    for number in range(1, instance.number_of_frames + 1):
        frame = visit.images.frame(instance, number, syntax)
        yield part_content_type(choice.media_type, syntax), {"Content-Location": f"{base}/frames/{number}"}, (frame,)


def _values(visit: Visit, instance: Instance, document: Mapping[str, Any]) -> Iterator[Part]:
    base = visit.door.address(instance.study_uid, instance.series_uid, instance.sop_uid)
    for path in _paths(document):
        if path.rpartition("/")[2] in PIXEL_TAGS and pixels_of(instance) in (Pixels.USUAL, Pixels.WIDE):
            yield from _frames(visit, instance, Choice(OCTET_STREAM, EXPLICIT_VR_LITTLE_ENDIAN, True))
        else:
            value = visit.images.bulkdata(instance, path)
            yield OCTET_STREAM, {"Content-Location": f"{base}/{path}"}, sliced(value)


def _paths(document: Mapping[str, Any]) -> Iterator[str]:
    """Yield what the bulk data URIs of a data set say after the address of the instance."""
    for element in document.values():
        if "BulkDataURI" in element:
            yield str(element["BulkDataURI"]).removeprefix(_PLACEHOLDER)
        elif element.get("vr") == "SQ":
            for item in element.get("Value", ()):
                yield from _paths(item or {})
