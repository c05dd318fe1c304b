"""STOW-RS: images come in as a stream and each gets its own answer.

Hides the body forms, the response module in JSON and XML, and which failure reason says what.
Sources: PS3.18 10.5 and annex I, PS3.7 annex C (status codes).
"""

from collections.abc import Iterator
from functools import partial
from http import HTTPStatus
from typing import Any

import orjson
from flask import Response, request

from fhir_server.web.dicom_answers import DICOM_JSON, DICOM_XML, Door, choose
from fhir_server.web.http import principal_of
from imaging.archive import Refused, Stored
from imaging.dicomweb import ContentType, MultipartLimits, Offer, Part, iter_parts, parse_content_type, read_body
from imaging.dicomweb.multipart import Body
from imaging.dicomweb.native_model import native_model
from imaging.errors import AppError, Category

DICOM = "application/dicom"
OFFERS = (Offer(DICOM_JSON), Offer("application/json"), Offer(DICOM_XML))
REASON_CHARS = 64  # of Error Comment, VR LO

FAILURE_REASON = {
    # what went wrong          code     meaning                                      source
    Category.INVALID:          0xC000,  # cannot understand                          PS3.18 I.2.2
    Category.UNSUPPORTED:      0xC122,  # transfer syntax not supported              PS3.18 I.2.2
    Category.TOO_LARGE:        0xA700,  # out of resources                           PS3.18 I.2.2
    Category.BUSY:             0xA700,
    Category.CONFLICT:         0x0111,  # duplicate SOP instance                     PS3.7 C.5.6
    Category.FORBIDDEN:        0x0124,  # not authorized                             PS3.7 C.5.22
}  # fmt: skip
PROCESSING_FAILURE = 0x0110  # whatever else; PS3.18 I.2.2
OTHER_STUDY = 0xC409  # ours: cannot be understood as part of the study that the address names

_UI, _UR, _SQ, _US, _LO = "UI", "UR", "SQ", "US", "LO"


def store(door: Door, study_uid: str | None = None) -> Response:
    """POST /studies[/{study}]: 200 when all were stored, 202 when some, 409 when none."""
    principal = principal_of(request)
    choice = choose(OFFERS)
    parts = _Parts(door, parse_content_type(request.headers.get("Content-Type", "")))
    outcomes = list(door.server.studies.ingest(parts, principal, study_uid=study_uid))
    if not outcomes:
        raise parts.error or AppError(Category.INVALID, "the request holds no instance", where="body")
    stored = [outcome for outcome in outcomes if isinstance(outcome, Stored)]
    refused = [outcome for outcome in outcomes if isinstance(outcome, Refused)]
    if parts.error:
        if not stored:
            raise parts.error
        refused.append(Refused(parts.error))
    document = _report(door, stored, refused, study_uid)
    status = HTTPStatus.OK if not refused else HTTPStatus.ACCEPTED if stored else HTTPStatus.CONFLICT
    body = native_model(document) if choice.media_type == DICOM_XML else orjson.dumps(document)
    return Response(body, status=status, content_type=choice.media_type)


class _Parts:
    """The instances of a request body, one after the other.

    What makes the body unreadable ends it and is kept in `error`: the instances before it are stored and reported.
    """

    def __init__(self, door: Door, content_type: ContentType) -> None:
        self.error: AppError | None = None
        config = door.server.config
        if request.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise AppError(Category.UNSUPPORTED, "the body has to come without encoding", where="Content-Type")
        if content_type.media_type == DICOM:
            self._bodies = _only_body(config["limits.instance_bytes"])
            return
        if content_type.media_type != "multipart/related" or content_type.related_type not in ("", DICOM):
            message = f'multipart/related; type="{DICOM}" or {DICOM} expected'
            raise AppError(Category.UNSUPPORTED, message, where="Content-Type")
        limits = MultipartLimits(
            parts=config["limits.parts"],
            part_bytes=config["limits.instance_bytes"],
            total_bytes=config["limits.request_bytes"],
        )
        boundary = content_type.parameters.get("boundary", "")
        parts = iter_parts(request.stream.read, boundary, limits)
        self._bodies = map(_body, parts)

    def __iter__(self) -> Iterator[Body]:
        try:
            yield from self._bodies
        except AppError as error:
            self.error = error


def _only_body(most_bytes: int) -> Iterator[Body]:
    yield read_body(request.stream.read, most_bytes)


def _body(part: Part) -> Body:
    told = part.content_type
    if told is not None and told.media_type not in (DICOM, "application/octet-stream"):
        raise AppError(Category.UNSUPPORTED, f"a part is not {DICOM}", where="Content-Type")
    return part.body


def _report(door: Door, stored: list[Stored], refused: list[Refused], study_uid: str | None) -> dict[str, Any]:
    """Return the Store Instances Response Module. Source: PS3.18 table I.1-1."""
    studies = {outcome.summary.study_uid for outcome in stored} | ({study_uid} if study_uid else set())
    report: dict[str, Any] = {"00081190": _element(_UR, *map(door.address, studies if len(studies) == 1 else ()))}
    failed = [_failure(each, study_uid) for each in refused if each.sop_instance_uid]
    others = [_failure(each, study_uid) for each in refused if not each.sop_instance_uid]
    if failed:
        report["00081198"] = _element(_SQ, *failed)
    if stored:
        report["00081199"] = _element(_SQ, *map(partial(_success, door), stored))
    if others:  # Other Failures Sequence: of what has no UIDs that could be told
        report["0008119A"] = _element(_SQ, *others)
    return report


def _success(door: Door, outcome: Stored) -> dict[str, Any]:
    summary = outcome.summary
    return {
        "00081150": _element(_UI, summary.instance.sop_class_uid),
        "00081155": _element(_UI, summary.sop_uid),
        "00081190": _element(_UR, door.address(summary.study_uid, summary.series_uid, summary.sop_uid)),
    }


def _failure(outcome: Refused, study_uid: str | None) -> dict[str, Any]:
    error = outcome.error
    reason = FAILURE_REASON.get(error.category, PROCESSING_FAILURE)
    if error.category is Category.CONFLICT and study_uid and error.where == study_uid:
        reason = OTHER_STUDY
    named = {"00081150": outcome.sop_class_uid, "00081155": outcome.sop_instance_uid}
    return {
        # Error Comment: codes say little, people read this. Our messages hold no patient data.
        "00000902": _element(_LO, error.message[:REASON_CHARS].strip()),
        **{tag: _element(_UI, uid) for tag, uid in named.items() if uid},
        "00081197": _element(_US, reason),
    }


def _element(vr: str, *values: Any) -> dict[str, Any]:
    return {"vr": vr, "Value": list(values)} if values else {"vr": vr}
