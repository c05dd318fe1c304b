"""STOW-RS: images come in as a stream and each gets its own answer.

Hides the body forms, the response module in JSON and XML, and which failure reason says what.
Sources: PS3.18 10.5 and annex I, PS3.7 annex C (status codes).
"""

import textwrap
from functools import partial
from http import HTTPStatus
from typing import Any

import orjson
from flask import Response, request

from fhir_server.storage_checks import RejectedError
from fhir_server.web.dicom_answers import DICOM_JSON, DICOM_XML, choose
from fhir_server.web.dicom_door import Door
from fhir_server.web.http import principal_of
from fhir_server.web.stow_bodies import Instances
from imaging.archive import Refused, Remark, Stored
from imaging.dicomweb import Offer
from imaging.dicomweb.native_model import native_model
from imaging.errors import AppError, Category

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
    """POST /studies[/{study}]: 200 when all were stored as they are, 202 when some or with warnings, 409 when none."""
    principal = principal_of(request)
    choice = choose(OFFERS)
    instances = Instances(door)
    outcomes = list(door.server.studies.ingest(instances, principal, study_uid=study_uid))
    if not outcomes:
        raise instances.error or AppError(Category.INVALID, "the request holds no instance", where="body")
    stored = [outcome for outcome in outcomes if isinstance(outcome, Stored)]
    refused = [outcome for outcome in outcomes if isinstance(outcome, Refused)]
    if instances.error:
        if not stored:
            raise instances.error
        refused.append(Refused(instances.error))
    document = _report(door, stored, refused, study_uid)
    is_plain = not refused and not any(outcome.remarks for outcome in stored)
    status = HTTPStatus.OK if is_plain else HTTPStatus.ACCEPTED if stored else HTTPStatus.CONFLICT
    body = native_model(document) if choice.media_type == DICOM_XML else orjson.dumps(document)
    return Response(body, status=status, content_type=choice.media_type)


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
        **_warning(outcome.remarks),
    }


def _warning(remarks: tuple[Remark, ...]) -> dict[str, Any]:
    """Return what is told of an instance that was stored with remarks: the code of the first, the words of all."""
    if not remarks:
        return {}
    changed = [dict(remark.original) for remark in remarks if remark.original]
    return {
        "00000902": _element(_LO, _comment("; ".join(remark.text for remark in remarks))),
        "00081196": _element(_US, remarks[0].reason),
        # Original Attributes Sequence, with the Modified Attributes Sequence in it
        **({"04000561": _element(_SQ, {"04000550": _element(_SQ, *changed)})} if changed else {}),
    }


def _failure(outcome: Refused, study_uid: str | None) -> dict[str, Any]:
    error = outcome.error
    reason = FAILURE_REASON.get(error.category, PROCESSING_FAILURE)
    if isinstance(error, RejectedError):
        reason = error.reason
    if error.category is Category.CONFLICT and study_uid and error.where == study_uid:
        reason = OTHER_STUDY
    named = {"00081150": outcome.sop_class_uid, "00081155": outcome.sop_instance_uid}
    return {
        # Error Comment: codes say little, people read this. Our messages hold no patient data.
        "00000902": _element(_LO, _comment(error.message)),
        **{tag: _element(_UI, uid) for tag, uid in named.items() if uid},
        "00081197": _element(_US, reason),
    }


def _comment(text: str) -> str:
    """Return the text as far as an Error Comment holds it, with dots where it goes on."""
    return textwrap.shorten(text, REASON_CHARS, placeholder=" ...")


def _element(vr: str, *values: Any) -> dict[str, Any]:
    return {"vr": vr, "Value": list(values)} if values else {"vr": vr}
