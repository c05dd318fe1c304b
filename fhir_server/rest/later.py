"""Requests that a client does not wait for: `Prefer: respond-async`. Source: FHIR R4 async, RFC 7240 4.1.

Whoever does it may die and be followed by another one, so what writes keeps its answer in the transaction that writes
(`batch.Journal`): transactions whole, batches entry by entry. What cannot is done at once: a preference is a wish.
"""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, NamedTuple

from fhir_server.access.principals import Principal
from fhir_server.model import json
from fhir_server.model.outcome import outcome
from fhir_server.model.resources import Interaction, SystemInteraction
from fhir_server.rest import batch
from fhir_server.rest.asks import Ask, Json, Preferences, Return
from fhir_server.rest.batch import Journal
from fhir_server.rest.interactions import Interactions
from fhir_server.rest.statuses import status_of
from imaging.errors import AppError, Category

CODE = "respond-async"  # of the Tasks that do it
_SEARCHES = {each.value: each for each in (Interaction.SEARCH, SystemInteraction.SEARCH)}
# What may be otherwise when it is tried again.
_PASSING = frozenset({Category.BUSY, Category.FAULT})


class Answered(NamedTuple):
    """An answer that is to be kept."""

    status: int
    body: bytes


def of_bundle(bundle: Json, preferences: Preferences) -> bytes:
    """Return a batch or transaction as it is kept until it is done."""
    return json.dumps({"bundle": bundle, **_kept(preferences)})


def of_search(ask: Ask) -> bytes:
    """Return a search as it is kept until it is done."""
    where = {"type": ask.type, "compartment": ask.compartment, "parameters": ask.parameters}
    return json.dumps({"search": ask.interaction.value, **where, **_kept(ask.preferences)})


def done(server: batch.Backing, principal: Principal, request: bytes, journal: Journal) -> Answered | None:
    """Do what was asked, and return the answer; None where it was kept in the transaction of what it tells.

    Raises BUSY and FAULT: those are to be tried again.
    """
    asked = json.loads_trusted(request)
    preferences = Preferences(Return(asked["return"]), asked["lenient"])
    try:
        if "bundle" not in asked:
            return _searched(server, principal, asked, preferences)
        body = batch.processed(server, principal, asked["bundle"], preferences, journal=journal).body
        is_kept = batch.kind_of(asked["bundle"]) == "transaction"
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
