"""What is asked of the Tasks that a subscriber places, by the handlers of their kinds, and of its rules."""

from fhir_server.access.principals import Principal
from fhir_server.model.task import Json, code_of
from fhir_server.model.task_writing import Actor
from fhir_server.ownership import Overseer
from fhir_server.work import outside, parties, triggers
from fhir_server.work.backing import Backing
from fhir_server.work.kinds import handlers


def overseer(server: Backing, principal: Principal, actor: Actor) -> Overseer:
    """Return who oversees what `principal`, the `actor`, writes."""

    def admit(task: Json) -> Json:
        code = code_of(task)
        look = handlers.get(code).admit if code in handlers else outside.admit
        admitted = look(server, principal, task) or task
        parties.check(admitted, actor, server.own)
        return admitted

    def reported(task: Json) -> None:
        outside.check_reported(server, principal, task)
        code = code_of(task)
        if code in handlers:
            handlers.get(code).reported(server, principal, task)

    def admit_plan(plan: Json, is_new: bool) -> None:
        triggers.admit(server, principal, plan, is_new=is_new)

    return Overseer(admit, reported, admit_plan)
