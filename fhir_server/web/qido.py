"""QIDO-RS: searches for studies, series and instances.

Hides paging, the addresses that results carry and what is brought up to date before it is searched.
Sources: PS3.18 10.6 and 8.3.4.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from http import HTTPStatus
from typing import Any

import orjson
from flask import Response, request

from fhir_server.access.audit import Access
from fhir_server.access.policy import require_images
from fhir_server.access.principals import Principal, Right
from fhir_server.store.filters import Act
from fhir_server.web.dicom_answers import (
    DICOM_XML,
    JSON_OFFERS,
    Door,
    Part,
    choose,
    digest,
    json_array,
    multipart,
    text_answer,
)
from fhir_server.web.http import principal_of
from imaging.dicomweb import Level, Matching, Offer, parse_query
from imaging.dicomweb.native_model import native_model

OFFERS = (*JSON_OFFERS, Offer(DICOM_XML, multipart=True))
RETRIEVE_URL = "00081190"
UIDS = ("0020000D", "0020000E", "00080018")  # of study, series and instance
DEPTH = {Level.STUDIES: 1, Level.SERIES: 2, Level.INSTANCES: 3}

Result = dict[str, Any]


def search(door: Door, level: Level, study_uid: str | None = None, series_uid: str | None = None) -> Response:
    """GET /studies, /series or /instances, of all or of one study or series: 200, or 204 when nothing matches."""
    principal = principal_of(request)
    require_images(principal, Right.RECEIVE_IMAGES, Act.SEARCH, "search for images")
    choice = choose(OFFERS)
    matching = _matching(door, level, study_uid, series_uid)
    if study_uid:
        door.server.studies.authorise(study_uid, principal, Act.SEARCH)
        door.server.studies.refresh(study_uid)
    else:
        door.server.studies.catch_up()
    found, is_cut = _page(door, matching, principal)
    studies = {study_uid} if study_uid else {result[UIDS[0]]["Value"][0] for result in found}
    door.server.audit.record(
        principal, Access.QUERY, studies=dict.fromkeys(studies, 0), parameters=_names(request.args)
    )
    if not found:
        return Response(status=HTTPStatus.NO_CONTENT)
    results = [_with_address(door, level, result) for result in found]
    if choice.multipart:
        boundary = digest(request.full_path, *(result[RETRIEVE_URL]["Value"][0] for result in results))
        parts: Iterator[Part] = ((choice.media_type, {}, (native_model(result),)) for result in results)
        response = text_answer(multipart(parts, boundary), choice.content_type(boundary))
    else:
        response = text_answer(json_array(map(orjson.dumps, results)), choice.media_type)
    if is_cut:
        response.headers["Warning"] = f'299 {door.base_url}: "There are additional results that can be requested"'
    return response


def _matching(door: Door, level: Level, study_uid: str | None, series_uid: str | None) -> Matching:
    """Return what is asked. Inside one study everything is given; a search of all studies comes in pages."""
    config = door.server.config
    most = None if study_uid else config["limits.search_count"]
    asked = parse_query(level, request.args.items(multi=True), max_limit=most)
    if asked.limit is None and most is not None:
        asked = replace(asked, limit=config["limits.search_count_default"])
    return asked.within(study_uid, series_uid)


def _page(door: Door, matching: Matching, principal: Principal) -> tuple[list[Result], bool]:
    """Return the asked page and whether more would have matched."""
    if matching.limit is None:
        return door.server.studies.query(matching, principal), False
    if matching.limit == 0:
        return [], False
    one_more = replace(matching, limit=matching.limit + 1)
    found = door.server.studies.query(one_more, principal)
    return found[: matching.limit], len(found) > matching.limit


def _names(parameters: Iterable[str]) -> list[str]:
    return [name for name in parameters if len(name) <= 100]


def _with_address(door: Door, level: Level, result: Result) -> Result:
    uids = [result[tag]["Value"][0] for tag in UIDS[: DEPTH[level]]]
    return dict(sorted({**result, RETRIEVE_URL: {"vr": "UR", "Value": [door.address(*uids)]}}.items()))
