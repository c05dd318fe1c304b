"""QIDO-RS: searches for studies, series and instances.

Hides paging, the addresses that results carry and what is brought up to date before it is searched.
Sources: PS3.18 10.6 and 8.3.4.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from http import HTTPStatus

import orjson
from flask import Response, request

from fhir_server.access.audit import Access, Metered
from fhir_server.web.dicom_answers import (
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
from fhir_server.web.http import principal_of
from imaging.archive import Result
from imaging.dicom_json import inserted
from imaging.dicomweb import Level, Matching, Offer, parse_query
from imaging.dicomweb.native_model import native_model

OFFERS = (*JSON_OFFERS, Offer(DICOM_XML, multipart=True))
RETRIEVE_URL = "00081190"


def search(door: Door, level: Level, study_uid: str | None = None, series_uid: str | None = None) -> Response:
    """GET /studies, /series or /instances, of all or of one study or series: 200, or 204 when nothing matches."""
    principal, choice = principal_of(request), choose(OFFERS)
    asked = _asked(door, level, study_uid)
    limit = asked.limit
    # One more than a page says whether more would have matched.
    one_more = asked if limit is None else replace(asked, limit=limit + 1)
    matched = door.view.search(door.server, principal, one_more, study_uid, series_uid)
    is_cut = limit is not None and len(matched.results) > limit
    found = matched.results[:limit]
    studies = {matched.within} if matched.within else set(matched.studies[:limit])
    named, metered = _names(request.args), Metered(door.right)
    door.server.audit.record(
        principal, Access.QUERY, studies=dict.fromkeys(studies, 0), parameters=named, metered=metered
    )
    if not found:
        return Response(status=HTTPStatus.NO_CONTENT)
    results = (_with_address(door, result) for result in found)
    if choice.multipart:
        boundary = digest(request.full_path, *(door.address(*result.uids) for result in found))
        parts: Iterator[Part] = ((choice.media_type, {}, (native_model(orjson.loads(json)),)) for json in results)
        response = text_answer(multipart(parts, boundary), choice.content_type(boundary))
    else:
        response = text_answer(json_array(results), choice.media_type)
    if is_cut:
        response.headers["Warning"] = f'299 {door.base_url}: "There are additional results that can be requested"'
    return response


def _asked(door: Door, level: Level, study_uid: str | None) -> Matching:
    """Return what is asked. Inside one study everything is given; a search of all studies comes in pages."""
    config = door.server.config
    most = None if study_uid else config["limits.search_count"]
    asked = parse_query(level, request.args.items(multi=True), max_limit=most)
    if asked.limit is None and most is not None:
        asked = replace(asked, limit=config["limits.search_count_default"])
    return asked


def _names(parameters: Iterable[str]) -> list[str]:
    return [name for name in parameters if len(name) <= 100]


def _with_address(door: Door, result: Result) -> bytes:
    return inserted(result.json, RETRIEVE_URL, orjson.dumps({"vr": "UR", "Value": [door.address(*result.uids)]}))
