"""Who may make what of a resource: the hooks by which the repository keeps to it, of all and of one subscriber. Pure.

What of an ImagingStudy is the images', and what a client's, is told in `study_elements`.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from types import MappingProxyType

from fhir_server import delivery
from fhir_server.hardcopy.devices import is_printer
from fhir_server.model import rule as rules
from fhir_server.model import task as tasks
from fhir_server.model import task_writing as writing
from fhir_server.model.peer import ENDPOINT_PREFIX
from fhir_server.model.subscriber import is_subscriber
from fhir_server.model.topics import PREFIX as TOPIC_PREFIX
from fhir_server.projection import (
    ENDPOINT_ID,
    EQUIPMENT,
    Resource,
    imaging_study_id,
    study_uid_of,
)
from fhir_server.store.repository import Hooks
from fhir_server.study_elements import changed_by_client, merge, shows_images, with_flags
from imaging.dataset import check_uid
from imaging.errors import AppError, Category

# Of a printer's Device, what its agent says.
OF_AGENT = ("property", "status", "statusReason", "version")

OWNED_OF_DEVICE = ("manufacturer", "serialNumber", "deviceName", "modelNumber", "version")

SERVER = tasks.SERVER.partition("/")[2]
ALGORITHM = tasks.ALGORITHM.partition("/")[2]  # how ids of Device and ActivityDefinition of an algorithm begin
ALGORITHM_URL = "urn:fhir-imaging:algorithm:"  # canonical of an algorithm's ActivityDefinition, before its name

_UID_FORM = re.compile(r"\d+(?:\.\d+)+")


def is_the_servers(resource_type: str, resource_id: str) -> bool:
    """Say whether an id is one only this server gives: to what images show, algorithms, endpoints, printers and topics.

    ImagingStudy is not among them: clients may write one, within what `changed_by_client` allows.
    """
    match resource_type:
        case "Observation":
            return _UID_FORM.fullmatch(resource_id) is not None
        case "Device":
            is_ours = resource_id.startswith((EQUIPMENT, ALGORITHM)) or resource_id == SERVER
            return is_ours or is_printer(resource_id)
        case "ActivityDefinition":
            return resource_id.startswith(ALGORITHM)
        case "Basic":
            return resource_id.startswith(TOPIC_PREFIX)
        case "Endpoint":
            return resource_id == ENDPOINT_ID or resource_id.startswith(ENDPOINT_PREFIX)
    return False


def _identify_imaging_study(resource: Resource) -> str | None:
    uid = study_uid_of(resource)
    if uid is None:
        return None
    check_uid(uid, "the Study Instance UID in ImagingStudy.identifier")
    return imaging_study_id(uid)


def _update_imaging_study(current: Resource, new: Resource, is_internal: bool) -> Resource:
    if is_internal:
        return merge(current, new)
    if study_uid_of(new) not in (study_uid_of(current), current["id"]):
        message = "ImagingStudy.identifier: the Study Instance UID cannot change; it is the id of the ImagingStudy"
        raise AppError(Category.CONFLICT, message, where="ImagingStudy.identifier")
    changed = changed_by_client(current, new) if shows_images(current) else []
    if changed:
        message = f"{', '.join(changed[:10])}: what comes from the images cannot be changed through FHIR"
        raise AppError(Category.CONFLICT, message, where=changed[0])
    meta = with_flags(new.get("meta", {}), current.get("meta", {})) if shows_images(current) else new.get("meta", {})
    return {**new, "meta": meta} if meta else new


def _update_device(current: Resource, new: Resource, is_internal: bool) -> Resource:
    if is_printer(current["id"]):
        return new if is_internal else _told_by_agent(current, new)
    if is_internal:
        return {**current, **new}
    if current["id"].startswith(ALGORITHM):
        _refuse_made(current)
    changed = [name for name in OWNED_OF_DEVICE if current.get(name) != new.get(name)]
    if changed and is_the_servers("Device", current["id"]):
        message = f"Device.{changed[0]}: what comes from the images cannot be changed through FHIR"
        raise AppError(Category.CONFLICT, message, where=f"Device.{changed[0]}")
    return new


def _told_by_agent(current: Resource, new: Resource) -> Resource:
    """Return what the agent of a printer says of it: how it is and what it can do, and nothing else."""
    names = {*current, *new} - {"meta", "text"}
    changed = sorted(name for name in names if name not in OF_AGENT and current.get(name) != new.get(name))
    if changed:
        message = f"Device.{changed[0]}: of a printer only {', '.join(OF_AGENT)} can be changed, by its agent"
        raise AppError(Category.CONFLICT, message, where=f"Device.{changed[0]}")
    if current.get("status") == "inactive" and new.get("status") != "inactive":
        message = "the printer is suspended by the operator; only `fhir-imaging printer resume` ends that"
        raise AppError(Category.CONFLICT, message, where="Device.status")
    return new


def _update_made(current: Resource, new: Resource, is_internal: bool) -> Resource:
    if not is_internal:
        _refuse_made(current)
    return new


def _delete_made(current: Resource, is_internal: bool) -> None:
    if not is_internal:
        _refuse_made(current)


def _refuse_made(current: Resource) -> None:
    kind = current["resourceType"]
    if is_the_servers(kind, current["id"]):
        message = f"this {kind} is made by the server itself; it cannot be changed or deleted through FHIR"
        raise AppError(Category.CONFLICT, message, where=kind)


def _create_organization(resource: Resource) -> Resource:
    _refuse_subscriber(resource)
    return resource


def _update_organization(current: Resource, new: Resource, is_internal: bool) -> Resource:
    _refuse_subscriber(current)
    _refuse_subscriber(new)
    return new


def _delete_organization(current: Resource, is_internal: bool) -> None:
    _refuse_subscriber(current)


def _refuse_subscriber(organization: Resource) -> None:
    if is_subscriber(organization):
        message = "subscribers are let in, changed and removed by the operator's commands only, not through FHIR"
        raise AppError(Category.CONFLICT, message, where="Organization.identifier")


def _create_definition(resource: Resource) -> Resource:
    _refuse_our_url(resource)
    return resource


def _update_definition(current: Resource, new: Resource, is_internal: bool) -> Resource:
    _refuse_our_url(new)
    return _update_made(current, new, is_internal)


def _refuse_our_url(definition: Resource) -> None:
    # Nobody finds a foreign definition when looking for what this server does.
    if definition.get("url", "").startswith(ALGORITHM_URL) and not definition.get("id", "").startswith(ALGORITHM):
        message = f"{ALGORITHM_URL}... names the algorithms of this server; give your definition another url"
        raise AppError(Category.CONFLICT, message, where="ActivityDefinition.url")


HOOKS: Mapping[str, Hooks] = MappingProxyType(
    {
        "ImagingStudy": Hooks(identify=_identify_imaging_study, before_update=_update_imaging_study),
        "ActivityDefinition": Hooks(
            before_create=_create_definition,
            before_update=_update_definition,
            before_delete=_delete_made,
            reserves=partial(is_the_servers, "ActivityDefinition"),
        ),
        "Basic": Hooks(
            before_update=_update_made, before_delete=_delete_made, reserves=partial(is_the_servers, "Basic")
        ),
        "Device": Hooks(
            before_update=_update_device, before_delete=_delete_made, reserves=partial(is_the_servers, "Device")
        ),
        "Endpoint": Hooks(
            before_update=_update_made, before_delete=_delete_made, reserves=partial(is_the_servers, "Endpoint")
        ),
        "Observation": Hooks(
            before_update=_update_made, before_delete=_delete_made, reserves=partial(is_the_servers, "Observation")
        ),
    }
)


@dataclass(frozen=True, slots=True)
class Overseer:
    """Who is asked about Tasks and PlanDefinitions that a subscriber places, and told of Tasks that it ends.

    admit       returns an order whose inputs are well formed as it is placed; raises what keeps it from being placed
    reported    hears of an order that its owner ends, before that is written
    admit_plan  raises what keeps a PlanDefinition from being stored; is told whether it is new as what it is
    """

    admit: Callable[[Resource], Resource]
    reported: Callable[[Resource], None]
    admit_plan: Callable[[Resource, bool], None]


def hooks_of(
    actor: writing.Actor, kinds: Mapping[str, tasks.Kind], overseer: Overseer, clock: Callable[[], datetime]
) -> Mapping[str, Hooks]:
    """Return the hooks of one subscriber's repository: what a Task or a Device may become depends on who it is.

    kinds   of Tasks whose inputs are checked, by code
    """

    own = {
        "Task": _hooks_of_tasks(actor, kinds, overseer, clock),
        "Device": _hooks_of_devices(actor.organization),
        "Organization": Hooks(
            before_create=_create_organization, before_update=_update_organization, before_delete=_delete_organization
        ),
        "PlanDefinition": _hooks_of_plans(actor.organization, overseer.admit_plan),
    }
    return MappingProxyType({**HOOKS, **own})


def _hooks_of_tasks(
    actor: writing.Actor, kinds: Mapping[str, tasks.Kind], overseer: Overseer, clock: Callable[[], datetime]
) -> Hooks:
    def create(resource: Resource) -> Resource:
        return overseer.admit(writing.created_by(resource, actor, kinds, clock()))

    def update(current: Resource, new: Resource, is_internal: bool) -> Resource:
        if is_internal:
            return new
        changed = writing.updated_by(current, new, actor, kinds, clock())
        if tasks.is_over(changed) and not tasks.is_over(current):
            overseer.reported(changed)
        is_order = writing.is_open_to_change(current, new, writing.roles_of(current, actor))
        return overseer.admit(changed) if is_order else changed

    def following(current: Resource, new: Resource) -> list[Resource]:
        is_end = tasks.status_of(new) is tasks.Status.COMPLETED and not tasks.is_over(current)
        return delivery.of_reported(new) if is_end else []

    def unmatched(current: Resource, new: Resource) -> None:
        writing.check_unmatched(current, new, actor)

    def delete(current: Resource, is_internal: bool) -> None:
        if not is_internal:
            writing.check_deletable(current, actor)

    return Hooks(
        before_create=create, before_update=update, before_delete=delete, unmatched=unmatched, following=following
    )


def _hooks_of_devices(organization: str) -> Hooks:
    """Return the hooks that keep a Device which does Tasks with the organisation that owns it."""

    def check(device: Resource) -> None:
        if device.get("owner", {}).get("reference", organization) != organization:
            message = f"only its owner may write a Device, and the owner can only be {organization} if you write it"
            raise AppError(Category.FORBIDDEN, message, where="Device.owner")

    def create(resource: Resource) -> Resource:
        check(resource)
        return resource

    def update(current: Resource, new: Resource, is_internal: bool) -> Resource:
        if not is_internal:
            check(current)
            check(new)
        return _update_device(current, new, is_internal)

    def delete(current: Resource, is_internal: bool) -> None:
        if not is_internal:
            check(current)
        _delete_made(current, is_internal)

    return replace(HOOKS["Device"], before_create=create, before_update=update, before_delete=delete)


def _hooks_of_plans(subscriber: str, admit: Callable[[Resource, bool], None]) -> Hooks:
    def stored(plan: Resource, *, is_new: bool) -> Resource:
        admit(plan, is_new)
        return rules.owned(plan, subscriber if rules.is_rule(plan) else "")

    def create(plan: Resource) -> Resource:
        return stored(plan, is_new=True)

    def update(current: Resource, new: Resource, is_internal: bool) -> Resource:
        if is_internal:
            return new
        _refuse_rule_of_others(current, subscriber)
        return stored(new, is_new=not rules.is_rule(current))

    def delete(current: Resource, is_internal: bool) -> None:
        if not is_internal:
            _refuse_rule_of_others(current, subscriber)

    return Hooks(before_create=create, before_update=update, before_delete=delete)


def _refuse_rule_of_others(plan: Resource, subscriber: str) -> None:
    if rules.owner_of(plan) not in ("", subscriber):
        message = "a processing rule acts with the rights of who stored it; only they may change or delete it"
        raise AppError(Category.FORBIDDEN, message, where="PlanDefinition")


def hooks_of_parameters(check: Callable[[Resource], None]) -> Hooks:
    """Return the hooks of SearchParameters; `check` raises what keeps one from being used."""

    def create(resource: Resource) -> Resource:
        check(resource)
        return resource

    def update(current: Resource, new: Resource, is_internal: bool) -> Resource:
        check(new)
        return new

    return Hooks(before_create=create, before_update=update)
