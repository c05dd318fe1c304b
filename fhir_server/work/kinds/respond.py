"""Requests whose answer is fetched later: `respond-async` Tasks, which the FHIR door places.

A request may be done twice: the second run finds what the first one wrote, and its answers, in the journal.
"""

from dataclasses import replace
from typing import Any

from fhir_server.delivery import value
from fhir_server.model.task import Json, Kind, Parameter
from fhir_server.rest import later
from fhir_server.work.backing import Backing
from fhir_server.work.handlers import Done, Handler, Report, handlers
from imaging.errors import AppError, Category

OUTPUTS = (Parameter("status", "valueUnsignedInt", least=1),)


def admit(server: Backing, principal: Any, task: Json) -> None:
    """Refuse: clients ask for this by a preference."""
    raise AppError(Category.FORBIDDEN, "send Prefer: respond-async; the server places these Tasks", where="Task.code")


def run(task: Json, context: Any, report: Report) -> Done:
    """Do a request with the rights that who asked has now, and keep the answer."""
    server: Backing = context
    asked = server.answers.find(task["id"])
    if not asked.status:
        acting = server.principals.acting_for(asked.owner, asked.grant)
        principal = replace(acting, client_id=asked.client)
        answer = later.done(server, principal, asked.request, server.answers.journal(task["id"]))
        if answer is not None:
            server.answers.keeping(task["id"], *answer)(None)
    return Done([value("status", "valueUnsignedInt", server.answers.find(task["id"]).status)])


handlers.register(later.CODE)(Handler(Kind(later.CODE, outputs=OUTPUTS), run, admit=admit))
