"""What a principal asks of FHIR resources, alone or as an entry of a Bundle: one way, with the same rules and records.

Knows FHIR's REST rules and nothing of sockets; who may do what is the repository's business, which is opened for the
principal. An ask goes through `require`, `prepare`, `perform` and, once it is durable, `settle`.
Source: FHIR R4 http 3.1.0.
"""

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from http import HTTPStatus
from typing import Any, NamedTuple, Protocol

from fhir_server import reindexing
from fhir_server.access.audit import NOTHING_MORE, Access, Metered, ordered
from fhir_server.access.policy import check_patients, renamed, restriction
from fhir_server.access.principals import Principal
from fhir_server.corrections import AttributeCorrections
from fhir_server.model import json, query
from fhir_server.model.criteria import ID_FORM, check_id
from fhir_server.model.outcome import Issue, outcome
from fhir_server.model.patch import patched
from fhir_server.model.resources import RESOURCES, Interaction, SystemInteraction
from fhir_server.model.summary import subset
from fhir_server.model.validation import validate
from fhir_server.reconciliation import Reconciliation
from fhir_server.rest import bundles, capability_endpoints, past, subscriptions
from fhir_server.rest.asks import Answer, Ask, Json, Return, is_known, version_wanted
from fhir_server.rest.criteria import criteria, criteria_of_text
from fhir_server.store.documents import Resource
from fhir_server.store.filters import Act
from fhir_server.store.parameters import SearchParameters
from fhir_server.store.repository import Repository
from fhir_server.store.usage import Usage
from fhir_server.studies import Studies
from imaging.errors import AppError, Category

# Types that projections write: before they are searched, images that were acknowledged have to show.
PROJECTED = frozenset({"Device", "Endpoint", "ImagingStudy", "Observation", "Patient"})


class Kind(NamedTuple):
    """What the audit record calls an interaction, and what the restriction is asked."""

    access: Access
    act: Act


KINDS: Mapping[Interaction | SystemInteraction, Kind] = {
    Interaction.READ: Kind(Access.READ, Act.READ),
    Interaction.VREAD: Kind(Access.VREAD, Act.READ),
    Interaction.HISTORY: Kind(Access.HISTORY, Act.READ),
    Interaction.HISTORY_TYPE: Kind(Access.HISTORY_TYPE, Act.SEARCH),
    Interaction.SEARCH: Kind(Access.SEARCH, Act.SEARCH),
    Interaction.CREATE: Kind(Access.CREATE, Act.CREATE),
    Interaction.UPDATE: Kind(Access.UPDATE, Act.UPDATE),
    Interaction.PATCH: Kind(Access.PATCH, Act.UPDATE),
    Interaction.DELETE: Kind(Access.DELETE, Act.DELETE),
    SystemInteraction.SEARCH: Kind(Access.SEARCH, Act.SEARCH),
    SystemInteraction.HISTORY: Kind(Access.HISTORY_SYSTEM, Act.SEARCH),
}


class Backing(subscriptions.Backing, capability_endpoints.Backing, Protocol):
    """What interactions need of the server."""

    @property
    def studies(self) -> Studies:
        """Where DICOM meets FHIR."""

    @property
    def usage(self) -> Usage:
        """What subscribers used."""

    @property
    def reconciliation(self) -> Reconciliation:
        """Merges Patients and moves studies."""

    @property
    def corrections(self) -> AttributeCorrections:
        """Corrects attributes of images."""

    @property
    def search_parameters(self) -> SearchParameters:
        """The search parameters in use."""

    @property
    def conforms(self) -> Callable[[Json], None]:
        """Raises INVALID for a resource that does not conform to the profiles that it has to."""

    @property
    def most_resource_bytes(self) -> int:
        """Largest resource that is taken."""


class Invocation(Protocol):
    """An operation that is asked for."""

    @property
    def access(self) -> Access:
        """What the audit record calls it."""

    @property
    def key(self) -> str:
        """The relative reference `Type/id`, "" where no resource is named."""

    @property
    def concerned(self) -> list[str]:
        """References of what else was concerned, once it was done."""

    def prepare(self, server: Backing) -> None:
        """Do what has to be done before, and not within, a transaction."""

    def perform(self, server: Backing, principal: Principal, repository: Repository) -> bytes:
        """Do it and return the resource that answers."""


class Interactions:
    """The interactions of one principal; for one request."""

    def __init__(self, server: Backing, principal: Principal) -> None:
        self._server = server
        self._principal = principal
        self._repository = server.repository_for(principal)
        self._url = server.fhir_url
        self._later: list[Callable[[], None]] = []

    def within(self, repository: Repository) -> "Interactions":
        """Return the same on a repository that is a part of a transaction, with nothing to settle yet."""
        other = copy.copy(self)
        other._repository = repository
        other._later = []
        return other

    @property
    def repository(self) -> Repository:
        """The repository as the principal may use it."""
        return self._repository

    def require(self, interaction: Interaction | SystemInteraction, resource_type: str) -> None:
        """Return when the interaction is offered and the principal may do it, with some resources at least."""
        if isinstance(interaction, SystemInteraction):
            return  # each type is asked for by itself
        row = RESOURCES.get(resource_type)
        if row is None:
            raise AppError(Category.NOT_FOUND, "this server keeps no resources of this type", where=resource_type[:64])
        if interaction not in row.interactions:
            message = f"{interaction} is not offered for {resource_type}"
            raise AppError(Category.UNSUPPORTED, message, where="method")
        self._repository.require(resource_type, KINDS[interaction].act)
        if interaction is Interaction.PATCH:
            # Whoever patches learns what was there: by tests, and by what comes back.
            self._repository.require(resource_type, Act.READ)

    def prepare(self, ask: Ask | Invocation) -> None:
        """Do what has to be done before, and not within, a transaction: check the body, have new images shown."""
        if not isinstance(ask, Ask):
            ask.prepare(self._server)
            return
        if ask.interaction in (Interaction.CREATE, Interaction.UPDATE):
            validate(ask.body, ask.type)
            self._server.conforms(ask.body)
        if ask.searches and (ask.type in PROJECTED or not ask.type):
            self._server.studies.catch_up()
        elif ask.type == "ImagingStudy" and ask.id:
            self._server.studies.refresh(ask.id)

    def perform(self, ask: Ask | Invocation) -> Answer:
        """Do it and return the answer. What it takes note of is written by `settle`."""
        if isinstance(ask, Ask):
            return _PERFORM[ask.interaction](self, ask)
        body = ask.perform(self._server, self._principal, self._repository)
        self._note(ask.access, dict.fromkeys([*([ask.key] if ask.key else []), *ask.concerned]))
        return Answer(body=body)

    def settle(self) -> None:
        """Write the audit record of what was done, and do what follows from it."""
        later, self._later = self._later, []
        for each in later:
            each()

    def refused(self, access: Access, resource_type: str, id: str, error: AppError) -> None:
        """Put on record what an entry of a Bundle tried in vain."""
        named = [f"{resource_type}/{id}"] if resource_type in RESOURCES and ID_FORM.fullmatch(id) else []
        self._server.audit.refused(self._principal, access, error, resources=named)

    def existing(self, ask: Ask, found: Resource) -> Answer:
        """Return the answer to a conditional create that found what it would create."""
        self._record(ask, [found.key])
        return self._written(ask, found, HTTPStatus.OK)

    def nothing_deleted(self, ask: Ask) -> Answer:
        """Return the answer to a conditional delete that found nothing."""
        self._record(ask, [])
        return _deleted(ask, "nothing meets the criteria, and nothing was deleted")

    # ---- reading

    def _read(self, ask: Ask) -> Answer:
        if ask.id[:1] in ("_", "$"):
            raise AppError(Category.UNSUPPORTED, "this operation is not supported", where=ask.id[:64])
        found = self._repository.read(ask.type, ask.id)
        self._record(ask, [found.key], metered=Metered(downloads=int(found.type == "Binary")))
        return self._shown(ask, found)

    def _vread(self, ask: Ask) -> Answer:
        check_id(ask.id, where=f"{ask.type}.id")
        if not ask.version.isascii() or not ask.version.isdecimal() or len(ask.version) > 18:
            raise AppError(Category.NOT_FOUND, f"{ask.key} has no such version", where="_history")
        found = self._repository.vread(ask.type, ask.id, int(ask.version))
        self._record(ask, [f"{found.key}/_history/{found.version}"])
        return self._shown(ask, found)

    def _shown(self, ask: Ask, found: Resource) -> Answer:
        if is_known(found, ask.conditions):
            return Answer(HTTPStatus.NOT_MODIFIED, version=found)
        asked = query.parse(ask.type, [each for each in ask.parameters if each[0] in ("_summary", "_elements")])
        if asked.summary == "count":
            raise AppError(Category.INVALID, "_summary=count is for searches", where="_summary")
        if asked.summary in (None, "false") and not asked.elements:
            return Answer(body=found.body, version=found)
        part = subset(found.json(), summary=asked.summary, names=asked.elements)
        return Answer(body=json.dumps(part), version=found)

    def _history(self, ask: Ask) -> Answer:
        answer, keys = past.of_resource(self._repository, ask, self._url, self._server)
        self._record(ask, keys)
        return answer

    def _changes(self, ask: Ask) -> Answer:
        answer, keys = past.of_types(self._repository, ask, self._url, self._server)
        self._record(ask, keys)
        return answer

    def _search(self, ask: Ask) -> Answer:
        server = self._server
        is_lenient = ask.preferences.is_lenient
        grant = self._principal.grant
        asked = query.parse(
            ask.type,
            renamed(ask.parameters, grant) if grant and grant.called else ask.parameters,
            base_url=self._url,
            limits=server.search_limits,
            lenient=is_lenient,
            compartment=ask.compartment,
        )
        check_patients(self._principal, asked, self._is_seen)
        page = self._repository.search(asked)
        names = [name for name, _ in ask.parameters if name not in query.NOT_SEARCH]
        self._record(ask, [each.key for each in page.matches], names)
        left_out = _ignored(asked.ignored) if asked.ignored else None
        page, local = capability_endpoints.opened(server, self._principal, page)
        return Answer(body=bundles.searchset(self._url, asked, page, left_out, server.clock(), local=local))

    def _is_seen(self, patient: str) -> bool:
        """Say whether the contracts let the subscriber see a patient, whatever the scopes are."""
        agreed = self._server.own.opened_for(restriction(replace(self._principal, grant=None)))
        identifier = patient.removeprefix("Patient/")
        return bool(ID_FORM.fullmatch(identifier)) and agreed.has("Patient", identifier)

    # ---- writing

    def _create(self, ask: Ask) -> Answer:
        resource = {name: value for name, value in ask.body.items() if name != "id"}
        if ask.conditions.if_none_exist is None:
            return self._created(ask, self._repository.create(resource, id=ask.id or None))
        wanted = criteria_of_text(ask.type, ask.conditions.if_none_exist, self._url, self._server.search_limits)

        def create(repository: Repository) -> tuple[Resource, bool]:
            found = repository.match(wanted)
            return (found, True) if found else (repository.create(resource), False)

        made, was_there = self._repository.together(create, where=ask.type)
        return self.existing(ask, made) if was_there else self._created(ask, made)

    def _created(self, ask: Ask, made: Resource) -> Answer:
        is_order = made.type == "Task" and made.is_first
        self._record(ask, [made.key], metered=ordered(made.json()) if is_order else NOTHING_MORE)
        self._follow_up(made)
        return self._written(ask, made, HTTPStatus.CREATED)

    def _update(self, ask: Ask) -> Answer:
        if_match = version_wanted(ask.conditions.if_match)
        must_be_new = ask.conditions.if_none_match is not None
        if must_be_new and (ask.conditions.if_none_match or "").strip() != "*":
            message = "an update takes If-None-Match: * only, not to replace what is there"
            raise AppError(Category.INVALID, message, where="If-None-Match")
        if ask.id:
            _check_same_id(ask.body, ask.id)
            made = self._repository.update(ask.body, if_match=if_match, must_be_new=must_be_new)
            return self._updated(ask, made)
        wanted = criteria(ask.type, ask.parameters, self._url, self._server.search_limits)

        def update(repository: Repository) -> Resource:
            found = repository.match(wanted)
            if found is None and "id" not in ask.body:
                return repository.create(ask.body)
            if found is not None and ask.body.get("id", found.id) != found.id:
                raise AppError(
                    Category.INVALID, "the id is not that of the resource that meets the criteria", where="id"
                )
            resource = ask.body if found is None else {**ask.body, "id": found.id}
            return repository.update(resource, if_match=if_match, must_be_new=must_be_new)

        return self._updated(ask, self._repository.together(update, where=ask.type))

    def _updated(self, ask: Ask, made: Resource) -> Answer:
        is_order = made.type == "Task" and made.is_first
        self._record(ask, [made.key], metered=ordered(made.json()) if is_order else NOTHING_MORE)
        self._follow_up(made)
        return self._written(ask, made, HTTPStatus.CREATED if made.is_first else HTTPStatus.OK)

    def _patch(self, ask: Ask) -> Answer:
        if_match = version_wanted(ask.conditions.if_match)

        def change(current: Json) -> Json:
            changed = patched(current, ask.body)
            if len(json.dumps(changed)) > self._server.most_resource_bytes:
                message = f"the resource would be larger than {self._server.most_resource_bytes} bytes"
                raise AppError(Category.TOO_LARGE, message, where="body")
            self._server.conforms(changed)
            return changed

        if ask.id:
            return self._updated(ask, self._repository.patch(ask.type, ask.id, change, if_match=if_match))
        wanted = criteria(ask.type, ask.parameters, self._url, self._server.search_limits)

        def patch(repository: Repository) -> Resource:
            found = repository.match(wanted)
            if found is None:
                raise AppError(
                    Category.NOT_FOUND, "nothing meets the criteria, and nothing was changed", where=ask.type
                )
            return repository.patch(ask.type, found.id, change, if_match=if_match)

        return self._updated(ask, self._repository.together(patch, where=ask.type))

    def _delete(self, ask: Ask) -> Answer:
        if_match = version_wanted(ask.conditions.if_match)
        if ask.id:
            return self._delete_one(ask, ask.id, if_match)
        wanted = criteria(ask.type, ask.parameters, self._url, self._server.search_limits)
        found = self._repository.together(lambda repository: repository.match(wanted), where=ask.type)
        if found is None:
            return self.nothing_deleted(ask)
        # What was changed since it was found may not meet the criteria any more.
        return self._delete_one(ask, found.id, if_match or found.version)

    def _delete_one(self, ask: Ask, id: str, if_match: int | None) -> Answer:
        key = f"{ask.type}/{id}"
        try:
            self._server.studies.delete_resource(ask.type, id, self._principal, self._repository, if_match=if_match)
        except AppError as error:
            if error.category is not Category.NOT_FOUND:
                raise
            refused, missing = self._server.audit.refused, error
            self._later.append(lambda: refused(self._principal, Access.DELETE, missing, resources=[key]))
            return _deleted(ask, f"there is no {key}")
        self._record(ask, [key])
        return _deleted(ask, f"{key} is deleted")

    # ---- what all do

    def _record(
        self, ask: Ask, keys: Iterable[str], names: Iterable[str] = (), metered: Metered = NOTHING_MORE
    ) -> None:
        self._note(KINDS[ask.interaction].access, keys, names, metered)

    def _note(
        self, access: Access, keys: Iterable[str], names: Iterable[str] = (), metered: Metered = NOTHING_MORE
    ) -> None:
        named, parameters, record = [*keys], [*names], self._server.audit.record
        self._later.append(
            lambda: record(self._principal, access, resources=named, parameters=parameters, metered=metered)
        )

    def _follow_up(self, written: Resource) -> None:
        if written.type == "ServiceRequest":
            self._later.append(lambda: self._server.studies.link_order(written.json()))
        if written.type == "SearchParameter":
            self._later.append(lambda: reindexing.place(self._server.own, self._server.search_parameters))

    def _written(self, ask: Ask, version: Resource, status: HTTPStatus) -> Answer:
        back = ask.preferences.back
        body = version.body if back is Return.REPRESENTATION else b""
        if back is Return.OUTCOME:
            body = _told(f"{version.key} is at version {version.version}")
        location = f"{self._url}/{version.key}/_history/{version.version}"
        return Answer(status, body, version, location, is_outcome=back is Return.OUTCOME)


_PERFORM: Mapping[Interaction | SystemInteraction, Callable[[Interactions, Ask], Answer]] = {
    Interaction.READ: Interactions._read,
    Interaction.VREAD: Interactions._vread,
    Interaction.HISTORY: Interactions._history,
    Interaction.HISTORY_TYPE: Interactions._changes,
    Interaction.SEARCH: Interactions._search,
    Interaction.CREATE: Interactions._create,
    Interaction.UPDATE: Interactions._update,
    Interaction.PATCH: Interactions._patch,
    Interaction.DELETE: Interactions._delete,
    SystemInteraction.HISTORY: Interactions._changes,
    SystemInteraction.SEARCH: Interactions._search,
}


def _check_same_id(resource: Json, wanted: str) -> None:
    if resource.get("id") != wanted:
        raise AppError(Category.INVALID, "the id of the resource has to be the one in the address", where="id")


def _deleted(ask: Ask, text: str) -> Answer:
    """What is not there is deleted as well. Source: FHIR R4 http 3.1.0.7."""
    if ask.preferences.back is not Return.OUTCOME:
        return Answer(HTTPStatus.NO_CONTENT)
    return Answer(body=_told(text), is_outcome=True)


def _told(text: str) -> bytes:
    return json.dumps(outcome([Issue("informational", text, severity="information")]))


def _ignored(names: Iterable[str]) -> dict[str, Any]:
    told = [Issue("not-supported", f"the parameter {name[:64]} was left out", severity="warning") for name in names]
    return outcome(told)
