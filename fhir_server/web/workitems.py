"""UPS-RS: the worklist of PS3.18 section 11 at the DICOMweb door.

Hides the forms of bodies and answers, where a UID stands in an address, and Warning headers. What a work item is and
who may change it is told by `rest.worklist`.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial, wraps
from http import HTTPStatus
from typing import Any, Concatenate, ParamSpec

import orjson
from flask import Response, request

from fhir_server.access.audit import Access
from fhir_server.rest.watching import is_told
from fhir_server.rest.worklist import RefusedError, Worklist
from fhir_server.web.dicom_answers import (
    DICOM_JSON,
    DICOM_XML,
    JSON_OFFERS,
    Part,
    choose,
    digest,
    json_array,
    multipart,
    text_answer,
)
from fhir_server.web.dicom_door import Door
from fhir_server.web.http import error_response, principal_of, tries
from imaging.dicomweb import Level, Offer, parse_content_type, parse_query, read_body
from imaging.dicomweb.encoded import decoded
from imaging.dicomweb.json_model import Model, checked, text
from imaging.dicomweb.native_model import native_model
from imaging.dicomweb.native_reader import document
from imaging.errors import AppError, Category

WORKITEMS = "/workitems"
WORKITEM = f"{WORKITEMS}/<uid:workitem_uid>"
OFFERS = (*JSON_OFFERS, Offer(DICOM_XML))
TAKEN = (DICOM_JSON, "application/json", DICOM_XML)
SEARCH_OFFERS = (*JSON_OFFERS, Offer(DICOM_XML, multipart=True))

P = ParamSpec("P")
Answer = Callable[Concatenate[Door, P], Response]


def _transaction(access: Access) -> Callable[[Answer[P]], Answer[P]]:
    """Have a transaction put on record, and a refusal warn of what the standard has it warn of."""

    def wrapped(answer: Answer[P]) -> Answer[P]:
        @wraps(answer)
        def answered(door: Door, /, *args: P.args, **kwargs: P.kwargs) -> Response:
            tries(access)
            try:
                return answer(door, *args, **kwargs)
            except RefusedError as error:
                return _warning(error_response(error), door, error.warning)

        return answered

    return wrapped


@_transaction(Access.CREATE)
def create(door: Door) -> Response:
    """POST /workitems[?{uid}]: 201 with the address of the new work item."""
    worklist = _worklist(door)
    uid, warning = worklist.create(_body(door), _named("workitem"))
    response = Response(status=HTTPStatus.CREATED)
    response.headers["Location"] = response.headers["Content-Location"] = _address(door, uid)
    return _warning(response, door, warning)


@_transaction(Access.READ)
def retrieve(door: Door, workitem_uid: str) -> Response:
    """GET /workitems/{uid}: the work item, without its Transaction UID."""
    worklist, choice = _worklist(door), choose(OFFERS)
    model, version = worklist.retrieve(workitem_uid)
    body = native_model(model) if choice.media_type == DICOM_XML else orjson.dumps(model)
    response = Response(body, content_type=choice.media_type)
    response.headers["Content-Location"] = _address(door, workitem_uid)
    response.set_etag(str(version), weak=True)
    response.headers["Cache-Control"] = "no-cache"
    response.vary.add("Accept")
    return response


@_transaction(Access.UPDATE)
def update(door: Door, workitem_uid: str) -> Response:
    """POST /workitems/{uid}[?{transaction-uid}]: 200."""
    worklist, model = _worklist(door), _body(door)
    transaction_uid = _named("transaction-uid") or text(model, "TransactionUID")
    worklist.update(workitem_uid, model, transaction_uid, request.headers.get("If-Match"))
    return _done(door, workitem_uid, "")


@_transaction(Access.UPDATE)
def change_state(door: Door, workitem_uid: str) -> Response:
    """PUT /workitems/{uid}/state: 200; the body names the state and the Transaction UID."""
    worklist, model = _worklist(door), _body(door)
    wanted, transaction_uid = text(model, "ProcedureStepState"), text(model, "TransactionUID")
    if_match = request.headers.get("If-Match")
    warning = worklist.change_state(workitem_uid, wanted, transaction_uid, if_match)
    return _done(door, workitem_uid, warning)


@_transaction(Access.UPDATE)
def request_cancellation(door: Door, workitem_uid: str) -> Response:
    """POST /workitems/{uid}/cancelrequest: 202; a body may tell why."""
    worklist = _worklist(door)
    asked = _body(door) if _has_body() else {}
    hears = partial(is_told, door.server)
    warning = worklist.request_cancellation(workitem_uid, asked, request.headers.get("If-Match"), hears)
    return _warning(Response(status=HTTPStatus.ACCEPTED), door, warning)


@_transaction(Access.SEARCH)
def search(door: Door) -> Response:
    """GET /workitems: 200 with what matches, 204 when nothing does."""
    worklist, choice = _worklist(door), choose(SEARCH_OFFERS)
    config = door.server.config
    # Of the levels of the archive none is meant; what can be asked of an attribute is the same.
    asked = parse_query(Level.INSTANCES, request.args.items(multi=True), max_limit=config["limits.search_count"])
    if asked.limit is None:
        asked = replace(asked, limit=config["limits.search_count_default"])
    found = worklist.search(asked, [name for name in request.args if len(name) <= 100])
    warning = "There are additional results that can be requested" if found.is_cut else ""
    if not found.items:
        return _warning(Response(status=HTTPStatus.NO_CONTENT), door, warning)
    if choice.multipart:
        boundary = digest(request.full_path, *(text(each, "SOPInstanceUID") for each in found.items))
        parts: Iterator[Part] = ((choice.media_type, {}, (native_model(each),)) for each in found.items)
        response = text_answer(multipart(parts, boundary), choice.content_type(boundary))
    else:
        response = text_answer(json_array(map(orjson.dumps, found.items)), choice.media_type)
    return _warning(response, door, warning)


ROUTES: tuple[tuple[str, str, Callable[..., Response]], ...] = (
    ("POST", WORKITEMS, create),
    ("GET", WORKITEMS, search),
    ("GET", WORKITEM, retrieve),
    ("POST", WORKITEM, update),
    ("PUT", f"{WORKITEM}/state", change_state),
    ("POST", f"{WORKITEM}/cancelrequest", request_cancellation),
)


def _worklist(door: Door) -> Worklist:
    return Worklist(door.server, principal_of(request))


def _address(door: Door, uid: str) -> str:
    return f"{door.base_url}{WORKITEMS}/{uid}"


def _done(door: Door, uid: str, warning: str) -> Response:
    response = Response(status=HTTPStatus.OK)
    response.headers["Content-Location"] = _address(door, uid)
    return _warning(response, door, warning)


def _warning(response: Response, door: Door, warning: str) -> Response:
    if warning:
        response.headers["Warning"] = f"299 {door.base_url}: {warning}"
    return response


def _named(parameter: str) -> str:
    """Return the UID in the query: alone, as the standard has it, or as the value of its name."""
    if parameter in request.args:
        return request.args[parameter].strip()
    bare = [name for name, value in request.args.items() if not value and name != "accept"]
    if len(bare) > 1:
        raise AppError(Category.INVALID, "one UID expected after the question mark", where="query")
    return bare[0].strip() if bare else ""


def _has_body() -> bool:
    return bool(request.content_length) or "Transfer-Encoding" in request.headers


def _body(door: Door) -> Model:
    """Return the data set that was sent. Raises UNSUPPORTED for another form, INVALID, TOO_LARGE."""
    told = parse_content_type(request.headers.get("Content-Type", ""))
    read = decoded(request.stream.read, request.headers.get("Content-Encoding", ""))
    if told.media_type not in TAKEN:
        message = f"a work item comes as {DICOM_JSON} or {DICOM_XML}"
        raise AppError(Category.UNSUPPORTED, message, where="Content-Type")
    data = bytes(read_body(read, door.server.config["limits.resource_bytes"]))
    return checked(document(data) if told.media_type == DICOM_XML else _json(data))


def _json(data: bytes) -> Any:
    try:
        found = orjson.loads(data)
    except orjson.JSONDecodeError:
        raise AppError(Category.INVALID, "the body is no JSON", where="body") from None
    # Some clients send an array of the one.
    return found[0] if isinstance(found, list) and len(found) == 1 else found
