"""Batch and transaction: many asks in one Bundle. Each goes the way that it would go alone.

A batch is done entry by entry, each with an outcome of its own. A transaction (`transaction`) is done whole or not at
all. Source: FHIR R4 http 3.1.0.11.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Protocol

from fhir_server.access.principals import Principal
from fhir_server.model import json
from fhir_server.model.outcome import outcome
from fhir_server.rest import bundles, interactions
from fhir_server.rest.asks import Answer, Ask, Json, Preferences
from fhir_server.rest.entries import Entry, entry_of, issues_in
from fhir_server.rest.interactions import Interactions
from fhir_server.rest.operations import Invocation
from fhir_server.rest.statuses import status_of
from fhir_server.rest.transaction import Transaction
from fhir_server.store.failures import unavailable
from fhir_server.store.repository import Guard, Repository
from imaging.errors import AppError, Category

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BundleLimits:
    """Bounds on a batch or transaction; the bytes are those of what is sent, and of what comes back."""

    entries: int
    bytes: int


class Journal(Protocol):
    """Keeps answers in the transactions that they tell of, for requests that may be done again."""

    def whole(self, status: int, body: bytes) -> Guard:
        """Return what keeps the answer to all."""

    def part(self, number: int, body: bytes) -> Guard:
        """Return what keeps the answer to an entry."""

    def parts(self) -> dict[int, bytes]:
        """Return the answers to entries that are kept."""


class Backing(interactions.Backing, Protocol):
    """What Bundles need of the server."""

    @property
    def bundle_limits(self) -> BundleLimits:
        """Bounds on batches and transactions."""


def kind_of(bundle: Any) -> str:
    """Return `batch` or `transaction`. Raises INVALID for anything else."""
    if not isinstance(bundle, dict) or bundle.get("resourceType") != "Bundle":
        raise AppError(Category.INVALID, "a Bundle is wanted here", where="resourceType")
    kind = bundle.get("type")
    if kind not in ("batch", "transaction"):
        raise AppError(Category.INVALID, "a Bundle of type batch or transaction is wanted here", where="Bundle.type")
    return str(kind)


def processed(
    server: Backing,
    principal: Principal,
    bundle: Json,
    preferences: Preferences,
    *,
    journal: Journal | None = None,
) -> Answer:
    """Return the Bundle of answers. Raises for a Bundle that is wrong itself, and what keeps a transaction from it.

    journal   of a Bundle that may be processed again: the answer to a transaction is kept within that transaction, that
              to an entry of a batch which writes within the entry's own; then BUSY is raised, not answered
    """
    kind = kind_of(bundle)
    entries = bundle.get("entry", [])
    if not isinstance(entries, list):
        raise AppError(Category.INVALID, "`entry` is a list", where="Bundle.entry")
    most = server.bundle_limits.entries
    if len(entries) > most:
        raise AppError(Category.TOO_LARGE, f"{len(entries)} entries, at most {most} are accepted", where="Bundle.entry")
    acting = Interactions(server, principal)

    def told(answers: list[bytes]) -> bytes:
        return bundles.responses(f"{kind}-response", answers, server.clock())

    if kind == "transaction":

        def kept(answers: list[Answer]) -> Guard:
            assert journal is not None  # noqa: S101 -- else nobody is asked to keep
            return journal.whole(HTTPStatus.OK, told([*map(bundles.response, answers)]))

        done = _transacted(server, acting, entries, preferences, kept if journal else None)
        return Answer(body=told([*map(bundles.response, done)]))
    return Answer(body=told(_Batch(server, acting, preferences, journal).answers(entries)))


class _Batch:
    """One batch of one principal."""

    def __init__(
        self, server: Backing, acting: Interactions, preferences: Preferences, journal: Journal | None
    ) -> None:
        self._server = server
        self._acting = acting
        self._preferences = preferences
        self._journal = journal

    def answers(self, entries: list[Any]) -> list[bytes]:
        """Do each entry that was not done before, and return the answers in their order."""
        before = self._journal.parts() if self._journal else {}
        left = self._server.bundle_limits.bytes
        told = []
        for number, found in enumerate(entries):
            told.append(before[number] if number in before else self._answered(found, number, is_full=left < 0))
            left -= len(told[-1])
        # Of two that did it at the same time, the one that wrote knows.
        kept = self._journal.parts() if self._journal else {}
        return [kept.get(number, each) for number, each in enumerate(told)]

    def _answered(self, found: Any, number: int, *, is_full: bool) -> bytes:
        # What one entry was about to put on record, and then failed, is not the next one's.
        acting = self._acting.within(self._acting.repository)
        entry = None
        try:
            if is_full:
                message = f"the answers before have more than {self._server.bundle_limits.bytes} bytes"
                raise AppError(Category.TOO_LARGE, message)
            entry = entry_of(found, number, self._server.fhir_url)
            entry.require(acting)
            ask = entry.asked(self._preferences, most_bytes=self._server.most_resource_bytes)
            acting.prepare(ask)
            return self._done(entry, ask, acting)
        except Exception as caught:  # what the others do stands, and their answers are owed; it is logged
            error = _named(caught)
            if self._journal and error.category is Category.BUSY:
                raise error from caught
            if entry:
                acting.refused(entry.access, entry.type, entry.id, error)
            body = json.dumps(outcome(issues_in(f"Bundle.entry[{number}]", error)))
            return bundles.response(Answer(status_of(error), body, is_outcome=True))

    def _done(self, entry: Entry, ask: Ask | Invocation, acting: Interactions) -> bytes:
        journal = self._journal
        if journal is None or entry.is_read_only or _takes_images_along(entry):
            answer = acting.perform(ask)
            acting.settle()
            return bundles.response(entry.finished(answer))

        def work(repository: Repository) -> tuple[bytes, Interactions]:
            part = acting.within(repository)
            told = bundles.response(entry.finished(part.perform(ask)))
            repository.also(journal.part(entry.number, told))
            return told, part

        told, done = acting.repository.together(work, where=entry.where)
        done.settle()
        return told


def is_repeatable(bundle: Any) -> bool:
    """Say whether a Bundle may be processed again with its journal, and each entry is done once all the same.

    Images are deleted outside of any transaction. To delete a study again by its id does nothing; by criteria it might
    be another one.
    """
    if kind_of(bundle) == "transaction":
        return True
    entries = bundle.get("entry", [])
    requests = [each.get("request") for each in entries if isinstance(each, dict)] if isinstance(entries, list) else []
    return not any(
        isinstance(each, dict) and each.get("method") == "DELETE" and _names_studies(each.get("url"))
        for each in requests
    )


def _names_studies(url: Any) -> bool:
    path, mark, _ = str(url).partition("?")
    return bool(mark) and path.rstrip("/").rpartition("/")[2] == "ImagingStudy"


def _takes_images_along(entry: Entry) -> bool:
    return entry.method == "DELETE" and entry.type == "ImagingStudy"


def _transacted(
    server: Backing,
    acting: Interactions,
    entries: list[Any],
    preferences: Preferences,
    keep: Callable[[list[Answer]], Guard] | None,
) -> list[Answer]:
    transaction = Transaction(server, acting, preferences)
    answers, done = transaction.run(entries, most_bytes=server.bundle_limits.bytes, keep=keep)
    with server.audit.gathered():
        done.settle()
    return answers


def _named(error: Exception) -> AppError:
    if isinstance(error, AppError) and error.category is not Category.FAULT:
        return error
    if message := unavailable(error):
        return AppError(Category.BUSY, message)
    _log.error("fault", extra={"fault": type(error).__name__}, exc_info=error)
    return AppError(Category.FAULT, "the server could not do this; quote the request id to its operator")
