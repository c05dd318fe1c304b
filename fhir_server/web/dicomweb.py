"""The DICOMweb door: one table of routes under /dicom-web.

Each route is answered by a function of `stow`, `qido`, `wado`, `rendered`, `wado_uri`, `workitems` or
`event_channel`. Who may see a study is decided by `Studies.authorise` before anything else, who may see a work item by
the repository that is opened for whoever asks. Source: PS3.18 sections 9 to 11.
"""

from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from typing import Protocol

from flask import Blueprint, Response, request
from flask.blueprints import BlueprintSetupState
from werkzeug.routing import BaseConverter

from fhir_server.web import (
    bulk,
    capabilities,
    capability_urls,
    event_channel,
    print_orders,
    qido,
    rendered,
    stow,
    wado,
    wado_uri,
    workitems,
)
from fhir_server.web.dicom_door import WITHOUT_NAMES, Door
from fhir_server.web.http import principal_of
from imaging.dicomweb import Level

PREFIX = "/dicom-web"

STUDY = "/studies/<uid:study_uid>"
SERIES = f"{STUDY}/series/<uid:series_uid>"
INSTANCE = f"{SERIES}/instances/<uid:sop_uid>"
FRAMES = f"{INSTANCE}/frames/<frames>"
Route = tuple[str, str, Callable[..., Response]]


def delete(door: Door, study_uid: str, series_uid: str | None = None, sop_uid: str | None = None) -> Response:
    """DELETE a study, a series or an instance."""
    door.server.studies.delete(study_uid, principal_of(request), series_uid=series_uid, sop_uid=sop_uid)
    return Response(status=HTTPStatus.NO_CONTENT)


def undelete(door: Door, study_uid: str, series_uid: str | None = None, sop_uid: str | None = None) -> Response:
    """POST ../undelete of a study, a series or an instance: take back what was deleted not too long ago."""
    door.server.studies.undelete(study_uid, principal_of(request), series_uid=series_uid, sop_uid=sop_uid)
    return Response(status=HTTPStatus.NO_CONTENT)


def _search(level: Level) -> Callable[..., Response]:
    def search(door: Door, study_uid: str | None = None, series_uid: str | None = None) -> Response:
        return qido.search(door, level, study_uid, series_uid)

    return search


def _without_names(answer: Callable[..., Response]) -> Callable[..., Response]:
    def answered(door: Door, **uids: str) -> Response:
        return answer(door.without_names, **uids)

    return answered


SEEN: tuple[Route, ...] = (
    ("GET", "/studies", _search(Level.STUDIES)),
    ("GET", f"{STUDY}/series", _search(Level.SERIES)),
    ("GET", f"{STUDY}/instances", _search(Level.INSTANCES)),
    ("GET", f"{SERIES}/instances", _search(Level.INSTANCES)),
    *(("GET", level, wado.retrieve) for level in (STUDY, SERIES, INSTANCE)),
    *(("GET", f"{level}/metadata", wado.retrieve_metadata) for level in (STUDY, SERIES, INSTANCE)),
    *(("GET", f"{level}/rendered", rendered.retrieve_rendered) for level in (STUDY, SERIES, INSTANCE, FRAMES)),
    *(("GET", f"{level}/thumbnail", rendered.retrieve_thumbnail) for level in (STUDY, SERIES, INSTANCE, FRAMES)),
    ("GET", FRAMES, wado.retrieve_frames),
    *(("GET", f"{level}/pixeldata", bulk.retrieve_pixeldata) for level in (STUDY, SERIES, INSTANCE)),
    *(("GET", f"{level}/bulkdata", bulk.retrieve_bulkdata) for level in (STUDY, SERIES, INSTANCE)),
    ("GET", f"{INSTANCE}/bulkdata/<path:path>", wado.retrieve_bulkdata),
)
"""What can be seen in both views: by name, and below `/deidentified` behind pseudonyms."""

# Searches and retrievals of images by name: these are below capability URLs as well.
READING: tuple[Route, ...] = (
    *SEEN,
    ("GET", "/series", _search(Level.SERIES)),
    ("GET", "/instances", _search(Level.INSTANCES)),
    ("GET", "/wado", wado_uri.retrieve),
    ("GET", f"{INSTANCE}/received", wado.retrieve_received),
)
ROUTES: tuple[Route, ...] = (
    *READING,
    *((method, f"{WITHOUT_NAMES}{rule}", _without_names(answer)) for method, rule, answer in SEEN),
    ("POST", "/studies", stow.store),
    ("POST", STUDY, stow.store),
    *(("DELETE", level, delete) for level in (STUDY, SERIES, INSTANCE)),
    *(("POST", f"{level}/undelete", undelete) for level in (STUDY, SERIES, INSTANCE)),
    *workitems.ROUTES,
    *event_channel.ROUTES,
)


class UidConverter(BaseConverter):
    """A UID in an address; anything else is an address where nothing is."""

    regex = r"[0-9.]{1,64}"


class Backing(capability_urls.Backing, print_orders.Backing, Protocol):
    """What these doors need of the server."""


def blueprints(server: Backing) -> tuple[Blueprint, ...]:
    """Return the routes of this door, those below capability URLs, and those below print orders.

    Errors, tokens and logs are `web.http`'s.
    """
    door = Door(server, server.dicomweb_url)
    return (
        _blueprint(door),
        capability_urls.blueprint(server, door, PREFIX, READING),
        print_orders.blueprint(server, door, PREFIX, _search),
    )


def _blueprint(door: Door) -> Blueprint:
    routes = Blueprint("dicomweb", __name__, url_prefix=PREFIX)

    def add_converter(state: BlueprintSetupState) -> None:
        state.app.url_map.converters["uid"] = UidConverter

    routes.record(add_converter)
    for number, (method, rule, answer) in enumerate(ROUTES):
        view = partial(answer, door)
        routes.add_url_rule(rule, f"route-{number}", view, methods=[method], provide_automatic_options=False)
    # The router tells a handshake apart; the route in the table tells what is none.
    channel = partial(event_channel.open_channel, door)
    routes.add_url_rule(event_channel.CHANNEL, "channel", channel, methods=["GET"], websocket=True)
    for number, rule in enumerate(("", "/", *dict.fromkeys(rule for _, rule, _ in ROUTES))):
        view = partial(capabilities.describe, door, rule)
        routes.add_url_rule(rule, f"options-{number}", view, methods=["OPTIONS"], provide_automatic_options=False)
    return routes
