"""Images of print orders, for the agents that print them: `/dicom-web/print-orders/<Task id>/...`.

Who serves printers (right `serve-printers`) gets exactly the images of a hard-copy Task that is addressed to its
Device or to itself, from when it has claimed it until the Task is over; and no others, at this door or elsewhere.
Whether the requester may still have them printed is asked as when the order is printed here.
Source: PS3.18 10.4 and 10.6, of single instances; the rest of DICOMweb is not here.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple, Protocol

from flask import Blueprint, Response, request

from fhir_server import hardcopies
from fhir_server.access.audit import Access
from fhir_server.access.contracts import Right
from fhir_server.access.policy import require
from fhir_server.access.principals import Principal
from fhir_server.deidentified import Found
from fhir_server.hardcopy.composing import of_inputs
from fhir_server.hardcopy.orders import CODE, order_of
from fhir_server.model.task import Json, Status, code_of, is_over, status_of
from fhir_server.web import dicom_door, wado
from fhir_server.web.dicom_answers import REVALIDATE
from fhir_server.web.dicom_door import Door, Seen
from fhir_server.web.http import principal_of, tries
from imaging.archive import Instance
from imaging.dicomweb import Level, Matching
from imaging.errors import AppError, Category

PATH = "/print-orders"
BELIEVED_S = 5.0  # which images an order has
MOST_REMEMBERED = 100  # orders
_DEPTH = {Level.SERIES: 2, Level.INSTANCES: 3}  # how many UIDs say which it is

Searching = Callable[[Level], Callable[..., Response]]


class Backing(dicom_door.Backing, hardcopies.Backing, Protocol):
    """What this door needs of the server."""


class _Images(NamedTuple):
    """The images of an order: UIDs of study, series and instance of each."""

    uids: frozenset[tuple[str, ...]]
    until: float


class PrintOrders:
    """Tells which images an order has that somebody prints."""

    def __init__(self, server: Backing) -> None:
        self._server = server
        self._known: dict[str, _Images] = {}
        self._lock = threading.Lock()

    def images(self, principal: Principal, task_id: str) -> frozenset[tuple[str, ...]]:
        """Return the images of an order. Raises FORBIDDEN, NOT_FOUND, CONFLICT before it is claimed."""
        require(principal, Right.SERVE_PRINTERS, "print orders of others")
        task = self._server.repository_for(principal).read("Task", task_id).json()
        owner = task.get("owner", {}).get("reference", "")
        is_mine = owner in (principal.subscriber, *principal.devices)
        if not is_mine or code_of(task) != CODE or is_over(task):
            raise AppError(Category.NOT_FOUND, "this is no open order for your printers", where=f"Task/{task_id}")
        if status_of(task) is not Status.IN_PROGRESS:
            raise AppError(Category.CONFLICT, "claim the order before you ask for its images", where=f"Task/{task_id}")
        known = self._known.get(task_id)
        if known is None or known.until < time.monotonic():
            known = _Images(self._of(task), time.monotonic() + BELIEVED_S)
            with self._lock:
                if len(self._known) >= MOST_REMEMBERED:
                    self._known.clear()
                self._known[task_id] = known
        return known.uids

    def _of(self, task: Json) -> frozenset[tuple[str, ...]]:
        server = self._server
        placed = server.own.read("Task", task["id"]).stamp
        requester = server.principals.acting_for(task["requester"]["reference"], placed.grant)
        require(requester, Right.ORDER_HARD_COPY, "have hard copies printed")
        device = server.own.read(*order_of(task).device.split("/", 1)).json()
        with of_inputs():
            found: list[Instance] = hardcopies.copying(server, requester, task, device).chosen.instances()
        return frozenset((each.study_uid, each.series_uid, each.sop_uid) for each in found)


class _OfOrder:
    """The view of an order: its images, by name."""

    caching = REVALIDATE  # until the order is over

    def __init__(self, uids: frozenset[tuple[str, ...]]) -> None:
        self._uids = uids

    def study(self, server: dicom_door.Backing, principal: Principal, study_uid: str) -> Seen:
        if study_uid not in {uids[0] for uids in self._uids}:
            raise AppError(Category.NOT_FOUND, "no such study", where=study_uid)
        return Seen(server.archive.for_one_answer(), study_uid, lambda: 0)

    def search(
        self,
        server: dicom_door.Backing,
        principal: Principal,
        asked: Matching,
        study_uid: str | None,
        series_uid: str | None,
    ) -> Found:
        mine = {uids[: _DEPTH[asked.level]] for uids in self._uids}
        studies = sorted({uids[0] for uids in self._uids})
        for each in studies:
            server.studies.refresh(each)
        # What is not of the order is left out before pages are made.
        every = server.archive.query(
            replace(asked.within(study_uid, series_uid), limit=None, offset=0), studies=studies
        )
        found = [each for each in every if each.uids in mine]
        end = None if asked.limit is None else asked.offset + asked.limit
        page = found[asked.offset : end]
        return Found(page, [each.uids[0] for each in page], study_uid)


def blueprint(server: Backing, door: Door, prefix: str, searching: Searching) -> Blueprint:
    """Return the routes below print orders, where the door is at `prefix`; `searching` answers a search of a level."""
    routes = Blueprint("print_orders", __name__, url_prefix=f"{prefix}{PATH}/<task_id>")
    orders = PrintOrders(server)

    def opened(task_id: str) -> tuple[Door, frozenset[tuple[str, ...]]]:
        uids = orders.images(principal_of(request), task_id)
        base_url = f"{door.base_url}{PATH}/{task_id}"
        return replace(door, base_url=base_url, view=_OfOrder(uids), right=Right.SERVE_PRINTERS), uids

    def search(level: Level) -> Callable[..., Response]:
        def answer(task_id: str, **uids: str) -> Response:
            tries(Access.QUERY)
            return searching(level)(opened(task_id)[0], **uids)

        return answer

    def retrieve(task_id: str, study_uid: str, series_uid: str, sop_uid: str) -> Response:
        tries(Access.RETRIEVE)
        seen, uids = opened(task_id)
        if (study_uid, series_uid, sop_uid) not in uids:
            raise AppError(Category.NOT_FOUND, "no such instance", where=sop_uid)
        return wado.retrieve(seen, study_uid, series_uid, sop_uid)

    for rule, level in SEARCHES.items():
        routes.add_url_rule(rule, f"search-{rule}", search(level), methods=["GET"], provide_automatic_options=False)
    routes.add_url_rule(INSTANCE, "retrieve", retrieve, methods=["GET"], provide_automatic_options=False)
    return routes


INSTANCE = "/studies/<uid:study_uid>/series/<uid:series_uid>/instances/<uid:sop_uid>"
SEARCHES = {
    "/series": Level.SERIES,
    "/instances": Level.INSTANCES,
    "/studies/<uid:study_uid>/instances": Level.INSTANCES,
    "/studies/<uid:study_uid>/series/<uid:series_uid>/instances": Level.INSTANCES,
}
