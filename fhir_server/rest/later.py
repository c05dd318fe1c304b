"""Requests that a client does not wait for: `Prefer: respond-async`. Source: FHIR R4 async, RFC 7240 4.1.

A preference may be left unheeded, and is where work that was done twice would show: only what reads, and transactions,
whose answer is kept with what they write or not at all, are done later.
"""

from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any, NamedTuple

from fhir_server.access.principals import Principal
from fhir_server.model import json
from fhir_server.model.outcome import outcome
from fhir_server.model.resources import Interaction, SystemInteraction
from fhir_server.rest import batch
from fhir_server.rest.asks import Ask, Json, Preferences, Return
from fhir_server.rest.batch import Keep
from fhir_server.rest.interactions import Interactions
from fhir_server.rest.statuses import status_of
from imaging.errors import AppError, Category

CODE = "respond-async"  # of the Tasks that do it
_SEARCHES = {each.value: each for each in (Interaction.SEARCH, SystemInteraction.SEARCH)}
_READS = frozenset({"GET", "HEAD"})
# What may be otherwise when it is tried again.
_PASSING = frozenset({Category.BUSY, Category.FAULT})


class Answered(NamedTuple):
    """An answer that is to be kept."""

    status: int
    body: bytes


def is_deferrable(bundle: Any) -> bool:
    """Say whether a Bundle may be done later, at least once: a transaction, or a batch that only reads."""
    if batch.kind_of(bundle) == "transaction":
        return True
    entries = bundle.get("entry", [])
    requests = [each.get("request") for each in entries if isinstance(each, dict)] if isinstance(entries, list) else []
    return all(isinstance(each, dict) and each.get("method") in _READS for each in requests)


def of_bundle(bundle: Json, preferences: Preferences) -> bytes:
    """Return a batch or transaction as it is kept until it is done."""
    return json.dumps({"bundle": bundle, **_kept(preferences)})


def of_search(ask: Ask) -> bytes:
    """Return a search as it is kept until it is done."""
    where = {"type": ask.type, "compartment": ask.compartment, "parameters": ask.parameters}
    return json.dumps({"search": ask.interaction.value, **where, **_kept(ask.preferences)})


def done(
    server: batch.Backing, principal: Principal, request: bytes, keep: Callable[[int, bytes], Keep]
) -> Answered | None:
    """Do what was asked, and return the answer; None where it was kept in the transaction of what it tells.

    Raises BUSY and FAULT: those are to be tried again.
    """
    asked = json.loads_trusted(request)
    preferences = Preferences(Return(asked["return"]), asked["lenient"])
    try:
        if "bundle" not in asked:
            return _searched(server, principal, asked, preferences)
        is_kept = batch.kind_of(asked["bundle"]) == "transaction"
        body = batch.processed(
            server, principal, asked["bundle"], preferences, keep=(lambda body: keep(200, body)) if is_kept else None
        ).body
        return None if is_kept else Answered(HTTPStatus.OK, body)
    except AppError as error:
        if error.category in _PASSING:
            raise
        return Answered(status_of(error), json.dumps(outcome(error)))


def _searched(
    server: batch.Backing, principal: Principal, asked: Mapping[str, Any], preferences: Preferences
) -> Answered:
    acting = Interactions(server, principal)
    parameters = tuple((str(name), str(value)) for name, value in asked["parameters"])
    ask = Ask(
        _SEARCHES[asked["search"]],
        asked["type"],
        parameters=parameters,
        preferences=preferences,
        compartment=asked["compartment"],
    )
    acting.require(ask.interaction, ask.type)
    acting.prepare(ask)
    answer = acting.perform(ask)
    acting.settle()
    return Answered(answer.status, answer.body)


def _kept(preferences: Preferences) -> Json:
    return {"return": preferences.back.value, "lenient": preferences.is_lenient}
