"""Whose element is it: what of an ImagingStudy belongs to the images, and what to whoever writes FHIR.

Pure. `merge` lays a new projection over what is stored, so that what a client added survives; `changed_by_client` names
the elements of the images that a client tried to change. `HOOKS` has the repository keep to it.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from types import MappingProxyType
from typing import Any

from fhir_server import delivery
from fhir_server.hardcopy.devices import is_printer
from fhir_server.model import rule as rules
from fhir_server.model import task as tasks
from fhir_server.model import task_writing as writing
from fhir_server.model.peer import ENDPOINT_PREFIX
from fhir_server.projection import (
    DICOM_UID,
    ENDPOINT,
    ENDPOINT_ID,
    EQUIPMENT,
    IMAGING_CONDITIONS,
    Resource,
    imaging_study_id,
    study_uid_of,
)
from fhir_server.store.repository import Hooks
from imaging.dataset import check_uid
from imaging.errors import AppError, Category

Ours = Callable[[Mapping[str, Any]], bool]  # says of an entry of a list that both sides write whether it is the images'

# Elements of ImagingStudy that come from the images as a whole.
OWNED = (
    "status", "modality", "subject", "started", "referrer", "numberOfSeries", "numberOfInstances", "description",
)  # fmt: skip
# Of a series; a client may add to the rest (extension, specimen, performer, endpoint).
OWNED_OF_SERIES = (
    "uid", "number", "modality", "description", "numberOfInstances", "bodySite", "laterality", "started", "instance",
)  # fmt: skip

# Of a printer's Device, what its agent says.
OF_AGENT = ("property", "status", "statusReason", "version")

OWNED_OF_DEVICE = ("manufacturer", "serialNumber", "deviceName", "modelNumber", "version")

SERVER = tasks.SERVER.partition("/")[2]
ALGORITHM = tasks.ALGORITHM.partition("/")[2]  # how ids of Device and ActivityDefinition of an algorithm begin
ALGORITHM_URL = "urn:fhir-imaging:algorithm:"  # canonical of an algorithm's ActivityDefinition, before its name

_UID_FORM = re.compile(r"\d+(?:\.\d+)+")


def is_the_servers(resource_type: str, resource_id: str) -> bool:
    """Say whether an id is one only this server gives: to what images show, algorithms, endpoints and printers.

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
        case "Endpoint":
            return resource_id == ENDPOINT_ID or resource_id.startswith(ENDPOINT_PREFIX)
    return False


def shows_images(imaging_study: Mapping[str, Any]) -> bool:
    """Say whether an ImagingStudy refers to this server's own Endpoint, as every projected one does."""
    return any(_is_our_endpoint(entry) for entry in imaging_study.get("endpoint", []))


def merge(existing: Resource | None, projected: Resource) -> Resource:
    """Return what to store: `projected` over `existing`, keeping what a client added.

    What the images tell is replaced, and series without images go; entries that a client added to shared lists
    (identifier, basedOn, endpoint, a series' performer and extension) stay after ours; all else stays as it is.
    """
    if existing is None:
        return projected
    merged = existing | projected
    for name, is_ours in _SHARED.items():
        _join(merged, name, projected, existing, is_ours)
    known = {entry.get("uid"): entry for entry in existing.get("series", [])}
    merged["series"] = [_merge_series(known.get(entry["uid"]), entry) for entry in projected["series"]]
    merged["meta"] = _merge_meta(existing.get("meta", {}), projected["meta"])
    return merged


def changed_by_client(stored: Resource, proposed: Resource) -> list[str]:
    """Return the paths of elements of the images in which `proposed` differs from `stored`, in document order."""
    paths = [f"ImagingStudy.{name}" for name in OWNED if stored.get(name) != proposed.get(name)]
    for name, is_ours in _SHARED.items():
        if not _keeps(stored.get(name, []), proposed.get(name, []), is_ours):
            paths.append(f"ImagingStudy.{name}")
    stored_series, proposed_series = stored.get("series", []), proposed.get("series", [])
    if [entry.get("uid") for entry in stored_series] != [entry.get("uid") for entry in proposed_series]:
        return [*paths, "ImagingStudy.series"]
    for number, (old, new) in enumerate(zip(stored_series, proposed_series, strict=True)):
        paths += [f"ImagingStudy.series[{number}].{name}" for name in _changed_of_series(old, new)]
    return paths


def _join(
    merged: dict[str, Any], name: str, projected: Mapping[str, Any], existing: Mapping[str, Any], is_ours: Ours
) -> None:
    ours = projected.get(name, [])
    added = [entry for entry in existing.get(name, []) if not is_ours(entry) and entry not in ours]
    if ours or added:
        merged[name] = [*ours, *added]
    else:
        merged.pop(name, None)


def _merge_series(existing: Mapping[str, Any] | None, projected: dict[str, Any]) -> dict[str, Any]:
    if existing is None:
        return projected
    merged = {**existing, **projected}
    for name, is_ours in _SHARED_OF_SERIES.items():
        _join(merged, name, projected, existing, is_ours)
    if (instances := existing.get("instance")) != projected["instance"]:
        merged["instance"] = _merge_instances(instances or [], projected["instance"])
    return merged


def _merge_instances(existing: list[dict[str, Any]], projected: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Instances as projected, each with the extensions that a client gave it before there were images."""
    added = {entry.get("uid"): entry["extension"] for entry in existing if "extension" in entry}
    if not added:
        return projected
    return [{**each, "extension": added[each["uid"]]} if each["uid"] in added else each for each in projected]


def _merge_meta(existing: Mapping[str, Any], projected: Mapping[str, Any]) -> dict[str, Any]:
    # Version and time are the repository's; profiles, tags and security labels of a client stay.
    kept = {name: value for name, value in existing.items() if name not in ("versionId", "lastUpdated")}
    profiles = [
        *projected["profile"],
        *(each for each in existing.get("profile", []) if each not in projected["profile"]),
    ]
    return {**kept, "profile": profiles}


def _keeps(stored: list[Any], proposed: list[Any], is_ours: Ours) -> bool:
    return [entry for entry in stored if is_ours(entry)] == [entry for entry in proposed if is_ours(entry)]


def _changed_of_series(stored: Mapping[str, Any], proposed: Mapping[str, Any]) -> list[str]:
    names = [name for name in OWNED_OF_SERIES if name != "instance" and stored.get(name) != proposed.get(name)]
    if _bare(stored.get("instance", [])) != _bare(proposed.get("instance", [])):
        names.append("instance")
    shared = _SHARED_OF_SERIES.items()
    return names + [
        name for name, is_ours in shared if not _keeps(stored.get(name, []), proposed.get(name, []), is_ours)
    ]


def _bare(instances: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in each.items() if name != "extension"} for each in instances]


# --- who owns which entry of a list that both sides write


def _is_our_identifier(entry: Mapping[str, Any]) -> bool:
    codes = {coding.get("code") for coding in entry.get("type", {}).get("coding", [])}
    return entry.get("system") == DICOM_UID or ("ACSN" in codes and entry.get("use") == "official")


def _is_our_endpoint(entry: Mapping[str, Any]) -> bool:
    return entry.get("reference") == ENDPOINT


def _is_our_performer(entry: Mapping[str, Any]) -> bool:
    actor = entry.get("actor", {})
    reference = str(actor.get("reference", ""))
    return reference.startswith(f"Device/{EQUIPMENT}") or (not reference and actor.get("type") == "Practitioner")


def _is_our_extension(entry: Mapping[str, Any]) -> bool:
    return entry.get("url") == IMAGING_CONDITIONS


def _is_ours_never(_: Mapping[str, Any]) -> bool:
    """An order found by accession number is a conclusion, not a fact of the images: a client may say otherwise."""
    return False


_SHARED = {"identifier": _is_our_identifier, "basedOn": _is_ours_never, "endpoint": _is_our_endpoint}
_SHARED_OF_SERIES = {"endpoint": _is_our_endpoint, "performer": _is_our_performer, "extension": _is_our_extension}


# --- hooks of the repository


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
    return new


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
        return overseer.admit(changed) if tasks.status_of(current) is tasks.Status.DRAFT else changed

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
