"""A transaction Bundle: every entry is done, in the order of the standard, or none is.

What can be checked before is checked before; then one transaction of the database holds deletions, creations, updates
and patches, and reads, each seeing what was done before it. Source: FHIR R4 http 3.1.0.11.2.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

from fhir_server.model.definitions import resource_types
from fhir_server.model.links import Change, Kind, relinked
from fhir_server.model.query import Query
from fhir_server.model.resources import Interaction
from fhir_server.rest.asks import Answer, Ask, Json, Preferences
from fhir_server.rest.criteria import criteria, criteria_of_text
from fhir_server.rest.entries import METHODS, Entry, EntryError, entry_of
from fhir_server.rest.interactions import Backing, Interactions
from fhir_server.rest.operations import Invocation
from fhir_server.store.repository import Guard, Repository
from imaging.errors import AppError, Category

_BY_CRITERIA = re.compile(r"([A-Za-z]{1,64})\?(.+)", re.S)
_REST_URL = re.compile(r"(.+/)[A-Za-z]+/[A-Za-z0-9\-.]{1,64}")
_RELATIVE = re.compile(r"[A-Za-z]+/[A-Za-z0-9\-.]{1,64}")


class Transaction:
    """One transaction of one principal."""

    def __init__(self, server: Backing, acting: Interactions, preferences: Preferences) -> None:
        self._server = server
        self._acting = acting
        self._preferences = preferences

    def run(
        self, found: list[Any], *, most_bytes: int, keep: Callable[[list[Answer]], Guard] | None = None
    ) -> tuple[list[Answer], Interactions]:
        """Return the answers in the order of the entries, and whose `settle` has to follow. Raises EntryError.

        most_bytes   of all answers together
        keep         keeps the answers in the same transaction
        """
        entries = [self._understood(each, number) for number, each in enumerate(found)]
        _check_full_urls(entries)
        for entry in entries:
            with naming(self._acting, entry):
                self._prepare(entry)

        def work(repository: Repository) -> tuple[list[Answer], Interactions]:
            acting = self._acting.within(repository)
            answers = _Attempt(self._server, acting, entries, self._preferences).answers(most_bytes)
            if keep:
                repository.also(keep(answers))
            return answers, acting

        return self._acting.repository.together(work, where="the Bundle")

    def _understood(self, found: Any, number: int) -> Entry:
        try:
            return entry_of(found, number, self._server.fhir_url)
        except AppError as error:
            raise EntryError(f"Bundle.entry[{number}]", error) from None

    def _prepare(self, entry: Entry) -> None:
        """Do what may be done before the database's transaction, which has to be short."""
        entry.require(self._acting)
        # A reference by criteria has no form that is valid in a resource; what it becomes has.
        resource = relinked(entry.resource, _placeholder) if entry.resource else None
        ask = entry.asked(self._preferences, most_bytes=self._server.most_resource_bytes, resource=resource)
        self._acting.prepare(ask)


@contextmanager
def naming(acting: Interactions, entry: Entry) -> Iterator[None]:
    """Have an error say which entry it is about, and put on record who tried what."""
    try:
        yield
    except EntryError:
        raise
    except AppError as error:
        acting.refused(entry.access, entry.type, entry.id, error)
        raise EntryError(entry.where, error) from None


class _Planned(NamedTuple):
    """What an entry that writes is going to do, and to which resource."""

    interaction: Interaction
    id: str


@dataclass(slots=True)
class _Attempt:
    """One attempt: the database's transaction begins again where other writers were in the way."""

    server: Backing
    acting: Interactions
    entries: list[Entry]
    preferences: Preferences
    made: dict[int, Answer] = field(default_factory=dict)
    planned: dict[int, _Planned] = field(default_factory=dict)
    creators: dict[str, int] = field(default_factory=dict)  # fingerprint of criteria -> entry that creates by them
    repeats: dict[int, int] = field(
        default_factory=dict
    )  # entry -> the one before it that creates by the same criteria
    touched: dict[str, int] = field(default_factory=dict)  # Type/id -> entry that writes it
    identities: dict[str, str] = field(default_factory=dict)  # fullUrl -> Type/id
    references: dict[str, str] = field(default_factory=dict)  # reference by criteria -> Type/id

    def answers(self, most_bytes: int) -> list[Answer]:
        """Do everything and return the answers in the order of the entries."""
        steps = {"DELETE": self._delete, "POST": self._plan_new, "PUT": self._plan_changed, "PATCH": self._plan_changed}
        ordered = sorted(self.entries, key=lambda entry: METHODS.index(entry.method))
        for entry in ordered:
            if entry.method in steps:
                with naming(self.acting, entry):
                    steps[entry.method](entry)
        self.acting.repository.expect([self._key(number) for number in self.planned])
        left = most_bytes
        for entry in ordered:
            if entry.number not in self.made:
                with naming(self.acting, entry):
                    self.made[entry.number] = entry.finished(self._performed(entry))
            left -= len(self.made[entry.number].body)
            if left < 0:
                raise AppError(Category.TOO_LARGE, f"the answers have more than {most_bytes} bytes", where="Bundle")
        return [self.made[entry.number] for entry in self.entries]

    # ---- what each entry is about

    def _delete(self, entry: Entry) -> None:
        ask = self._ask(entry)
        if not entry.id:
            found = self.acting.repository.match(self._criteria(entry))
            if found is None:
                self.made[entry.number] = self.acting.nothing_deleted(ask)
                return
            ask = replace(ask, id=found.id, parameters=())
        self._touch(ask.key, entry)
        self.made[entry.number] = self.acting.perform(ask)

    def _plan_new(self, entry: Entry) -> None:
        if isinstance(entry.address, Invocation):
            if entry.address.operation.changes:
                self._touch(entry.address.key, entry)
            return
        wanted = self._criteria(entry) if entry.conditions.if_none_exist is not None else None
        if wanted and wanted.fingerprint in self.creators:
            first = self.repeats[entry.number] = self.creators[wanted.fingerprint]
            self._name(entry, self._key(first))
            return
        if wanted and (found := self.acting.repository.match(wanted)):
            self.made[entry.number] = self.acting.existing(self._ask(entry), found)
            self._name(entry, found.key)
            return
        self._plan(entry, Interaction.CREATE, self.acting.repository.identity(entry.resource or {}), wanted)

    def _plan_changed(self, entry: Entry) -> None:
        interaction = Interaction.PATCH if entry.method == "PATCH" else Interaction.UPDATE
        if entry.id:
            self._plan(entry, interaction, entry.id)
            return
        wanted, given = self._criteria(entry), (entry.resource or {}).get("id")
        if wanted.fingerprint in self.creators:
            raise AppError(Category.INVALID, "another entry creates by the same criteria", where=entry.type)
        found = self.acting.repository.match(wanted)
        if interaction is Interaction.PATCH:
            given = None
        if found is not None:
            if given not in (None, found.id):
                message = "the id is not that of the resource that meets the criteria"
                raise AppError(Category.INVALID, message, where="id")
            self._plan(entry, interaction, found.id)
        elif interaction is Interaction.PATCH:
            raise AppError(Category.NOT_FOUND, "nothing meets the criteria", where=entry.type)
        elif given is None:
            self._plan(entry, Interaction.CREATE, self.acting.repository.identity(entry.resource or {}), wanted)
        else:
            self._plan(entry, interaction, str(given))

    def _plan(self, entry: Entry, interaction: Interaction, id: str, wanted: Query | None = None) -> None:
        key = f"{entry.type}/{id}"
        self._touch(key, entry)
        self._name(entry, key)
        self.planned[entry.number] = _Planned(interaction, id)
        if wanted:
            self.creators[wanted.fingerprint] = entry.number

    def _touch(self, key: str, entry: Entry) -> None:
        """Refuse what would be written twice: the standard gives such a transaction no meaning."""
        if key in self.touched:
            message = f"Bundle.entry[{self.touched[key]}] writes {key} as well"
            raise AppError(Category.INVALID, message, where=entry.where)
        self.touched[key] = entry.number

    def _name(self, entry: Entry, key: str) -> None:
        if entry.full_url:
            self.identities[entry.full_url] = key

    def _criteria(self, entry: Entry) -> Query:
        limits, url, text = self.server.search_limits, self.server.fhir_url, entry.conditions.if_none_exist
        if entry.method == "POST" and text is not None:
            return criteria_of_text(entry.type, text, url, limits)
        return criteria(entry.type, entry.parameters, url, limits)

    def _key(self, number: int) -> str:
        return f"{self.entries[number].type}/{self.planned[number].id}"

    # ---- doing it

    def _performed(self, entry: Entry) -> Answer:
        if entry.number in self.repeats:
            version = self.made[self.repeats[entry.number]].version
            assert version is not None  # noqa: S101 -- what was created has one
            return self.acting.existing(self._ask(entry), version)
        body = relinked(entry.resource, self._links_of(entry)) if entry.resource else None
        if isinstance(entry.address, Invocation):
            return self.acting.perform(self._asked(entry, body))
        ask = self._ask(entry, body)
        if plan := self.planned.get(entry.number):
            conditions = replace(ask.conditions, if_none_exist=None)
            ask = replace(ask, interaction=plan.interaction, id=plan.id, parameters=(), conditions=conditions)
            if plan.interaction is Interaction.UPDATE and "id" not in ask.body:
                ask = replace(ask, body={**ask.body, "id": plan.id})
        return self.acting.perform(ask)

    def _asked(self, entry: Entry, body: Json | None = None) -> Ask | Invocation:
        return entry.asked(self.preferences, most_bytes=self.server.most_resource_bytes, resource=body)

    def _ask(self, entry: Entry, body: Json | None = None) -> Ask:
        asked = self._asked(entry, body)
        assert isinstance(asked, Ask)  # noqa: S101 -- operations go their own way
        return asked

    def _links_of(self, entry: Entry) -> Change:
        match = _REST_URL.fullmatch(entry.full_url)
        root = match[1] if match else ""

        def change(text: str, kind: Kind) -> str:
            key = self.identities.get(text)
            if key is None and root and _RELATIVE.fullmatch(text):
                key = self.identities.get(root + text)
            if key is None and kind is Kind.REFERENCE:
                key = self._found(text)
            if key is None:
                return text
            return key if kind is Kind.REFERENCE else f"{self.server.fhir_url}/{key}"

        return change

    def _found(self, text: str) -> str | None:
        """Return what a reference by criteria means; None for any other reference."""
        match = _BY_CRITERIA.fullmatch(text)
        if match is None or match[1] not in resource_types():
            return None
        if text not in self.references:
            parameters = parse_qsl(match[2], keep_blank_values=True)
            wanted = criteria(match[1], parameters, self.server.fhir_url, self.server.search_limits)
            if wanted.fingerprint in self.creators:
                self.references[text] = self._key(self.creators[wanted.fingerprint])
            else:
                self.references[text] = self._selected(wanted)
        return self.references[text]

    def _selected(self, wanted: Query) -> str:
        found = self.acting.repository.selected(wanted)
        if found is None:
            message = f"no {wanted.type} meets the criteria of a reference"
            raise AppError(Category.PRECONDITION, message, where=wanted.type)
        return found.key


def _placeholder(text: str, kind: Kind) -> str:
    match = _BY_CRITERIA.fullmatch(text) if kind is Kind.REFERENCE else None
    return f"{match[1]}/1" if match and match[1] in resource_types() else text


def _check_full_urls(entries: list[Entry]) -> None:
    seen: dict[str, int] = {}
    for entry in entries:
        if entry.full_url and entry.resource is not None:
            if entry.full_url in seen:
                message = f"Bundle.entry[{seen[entry.full_url]}] has the same fullUrl"
                raise EntryError(entry.where, AppError(Category.INVALID, message, where="fullUrl"))
            seen[entry.full_url] = entry.number
