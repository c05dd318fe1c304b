"""Who a subscriber is to Tasks, and whether those that a new Task names are there.

A Task may be addressed to an Organization that is a subscriber, or to a Device: of this server, or one whose
Device.owner is a subscriber. It may be a part of Tasks that its requester ordered, or does.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any

from fhir_server.access.contracts import Right
from fhir_server.access.principals import Principal
from fhir_server.model.criteria import Clause, Reference
from fhir_server.model.query import Query
from fhir_server.model.subscriber import is_subscriber
from fhir_server.model.task import ALGORITHM, KIND, SERVER, codings_of
from fhir_server.model.task_writing import Actor, roles_of
from fhir_server.store.repository import Repository
from fhir_server.work.backing import Backing
from imaging.errors import AppError, Category

MOST_DEVICES = 200  # of one organisation that are told from others as owners of Tasks
MOST_WHOLES = 10  # Tasks that one is a part of


def actor_of(principal: Principal, own: Repository) -> Actor:
    """Return a subscriber as writer of Tasks; its devices are looked up when first asked for."""

    @cache
    def devices() -> Mapping[str, frozenset[tuple[str, str]]]:
        clause = Clause("organization", "reference", "", (Reference((principal.subscriber,)),))
        found = own.search(Query("Device", (clause,), count=MOST_DEVICES)).matches
        return {each.key: codings_of([each.json().get("type", {})]) for each in found}

    return Actor(principal.subscriber, devices, principal.may(Right.PROCESS_IMAGES))


def requester_of(server: Backing, task: Mapping[str, Any]) -> Principal:
    """Return the principal as which an order is done: its requester, no further than the token that placed it went.

    Raises FORBIDDEN when the subscriber is suspended.
    """
    placed = server.own.read("Task", str(task["id"]))
    return server.principals.acting_for(task["requester"]["reference"], placed.stamp.grant)


def check(task: Mapping[str, Any], actor: Actor, own: Repository) -> None:
    """Return when everybody whom a new Task names is there. Raises INVALID, and FORBIDDEN for the part of another's."""
    if "owner" in task:
        _check_owner(task["owner"].get("reference", ""), own)
    if task.get("performerType") and not all(codings_of([each]) for each in task["performerType"]):
        raise AppError(Category.INVALID, "a kind of performer is told by a code", where="Task.performerType")
    wholes = task.get("partOf", [])
    if len(wholes) > MOST_WHOLES:
        raise AppError(Category.INVALID, f"a part of {len(wholes)} Tasks; at most {MOST_WHOLES}", where="Task.partOf")
    for number, whole in enumerate(wholes):
        _check_whole(whole.get("reference", ""), actor, own, where=f"Task.partOf[{number}]")


def announce(own: Repository, *, name: str, version: str) -> None:
    """Keep the Device by which this server can be named as the owner of a Task."""
    device = {
        "resourceType": "Device",
        "id": SERVER.partition("/")[2],
        "status": "active",
        "deviceName": [{"name": name, "type": "user-friendly-name"}],
        "version": [{"value": version}],
        "type": {"coding": [{"system": KIND[0], "code": KIND[1]}]},
    }
    own.update(device, create=True, if_changed=True)


def _check_owner(owner: str, own: Repository) -> None:
    if owner == SERVER or owner.startswith(ALGORITHM):
        return
    kind, _, identifier = owner.partition("/")
    message = "a Task is addressed to the Organization of a subscriber, to a Device whose owner that is, or to nobody"
    if kind not in ("Organization", "Device") or "/" in identifier:
        raise AppError(Category.INVALID, message, where="Task.owner")
    try:
        found = own.read(kind, identifier).json()
    except AppError as error:
        if error.category not in (Category.NOT_FOUND, Category.GONE, Category.INVALID):
            raise
        raise AppError(Category.INVALID, f"{error.message}; {message}", where="Task.owner") from None
    if kind == "Organization" and not is_subscriber(found):
        raise AppError(Category.INVALID, f"this Organization is no subscriber; {message}", where="Task.owner")
    if kind == "Device" and "owner" not in found:
        raise AppError(Category.INVALID, f"this Device has no owner; {message}", where="Task.owner")


def _check_whole(reference: str, actor: Actor, own: Repository, *, where: str) -> None:
    kind, _, identifier = reference.partition("/")
    if kind != "Task":
        raise AppError(Category.INVALID, "a reference to a Task of this server expected", where=where)
    try:
        whole = own.read(kind, identifier).json()
    except AppError as error:
        if error.category not in (Category.NOT_FOUND, Category.GONE, Category.INVALID):
            raise
        whole = {}
    if not whole or not roles_of(whole, actor):
        message = "a Task can be made a part only of what its requester ordered, or does"
        raise AppError(Category.FORBIDDEN, message, where=where)
