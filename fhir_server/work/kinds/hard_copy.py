"""Hard copy: `hard-copy` Tasks, from the order to the sheets that came out.

Orders for printers that this server reaches are done here; those for a printer elsewhere get its Device as owner, and
the agent there does them. A run that is repeated goes on where the last one stopped: the printer is asked what became
of the job whose ticket was saved (`fhir_server/hardcopy/press.py`).
"""

from typing import Any

from fhir_server.access.audit import Access, Metered
from fhir_server.access.policy import require
from fhir_server.access.principals import Principal, Right
from fhir_server.hardcopies import copying, printer_of
from fhir_server.hardcopy.composing import of_inputs
from fhir_server.hardcopy.devices import capabilities_of
from fhir_server.hardcopy.inputs import PARAMETERS
from fhir_server.hardcopy.orders import CODE, check_order, order_of
from fhir_server.hardcopy.outputs import OUTPUTS, printed, why
from fhir_server.hardcopy.press import press
from fhir_server.model import json
from fhir_server.model.task import Json, Kind, Progress, name_of
from fhir_server.printers import build
from fhir_server.store.printers import Sheets
from fhir_server.work.backing import Backing
from fhir_server.work.handlers import Done, Handler, Later, Report, handlers
from fhir_server.work.parties import requester_of
from imaging.errors import AppError, Category
from imaging.printer import Attachment, Job
from imaging.printer import Progress as Stage

ASK_AGAIN_S = 5.0  # while the printer prints
AWAY_S = 10.0  # while it cannot be reached, or is suspended


def admit(server: Backing, principal: Principal, task: Json) -> Json:
    """Raise what keeps a principal from placing an order; return it, addressed to the agent that will do it if any."""
    require(principal, Right.ORDER_HARD_COPY, "order hard copies")
    order = order_of(task)
    printer, device = printer_of(server, principal, order)
    with of_inputs():
        copying(server, principal, task, device).check()
    if not printer.is_elsewhere:
        return task
    return {**task, "owner": {"reference": order.device}}


def run(task: Json, context: Any, report: Report) -> Done | Later:
    """Print what a Task orders, as far as it goes now."""
    server: Backing = context
    order = order_of(task)
    principal = requester_of(server, task)
    printer, device = printer_of(server, principal, order)
    if printer.is_suspended:
        return Later(AWAY_S, "the printer is suspended")

    def job() -> Job:
        require(principal, Right.ORDER_HARD_COPY, "have hard copies printed")
        report(Progress(0, "composing and printing"))
        copy = copying(server, principal, task, device)
        server.printers.jobs.concerns(task["id"], printer.name, copy.chosen.studies())
        attached = Attachment("order.json", "application/fhir+json", json.dumps(task), "The order, a FHIR Task")
        return copy.job([attached])

    try:
        with server.printers.jobs.job(task["id"]) as notes:
            outcome = press(build(printer), job, notes, hear=lambda status: server.printers.hear(printer.name, status))
    except AppError as error:
        if error.category is Category.BUSY:
            return Later(AWAY_S, error.message)
        raise
    if outcome.progress is Stage.PENDING or outcome.may_repeat:
        return Later(AWAY_S, outcome.detail or "the printer did not take the pages; it is tried again")
    if outcome.progress is Stage.PRINTING:
        return Later(ASK_AGAIN_S, outcome.detail or "the printer is printing")
    is_done = outcome.progress is Stage.DONE
    account(server, principal, task, outcome.pages, is_complete=is_done)
    outputs = printed(outcome.pages, order.copies, order.device, outcome.detail)
    return Done(outputs, failure="" if is_done else why(outcome))


def reported(server: Backing, principal: Principal, task: Json) -> None:
    """Account for what an agent reports at the end of an order."""
    if task["status"] not in ("completed", "failed"):
        return
    pages = next((each["valueUnsignedInt"] for each in task.get("output", []) if name_of(each) == "pages"), 0)
    account(server, principal, task, pages, is_complete=task["status"] == "completed")


def account(server: Backing, principal: Principal, task: Json, pages: int, *, is_complete: bool) -> None:
    """Meter and audit what came out for a Task; `pages` are of one copy."""
    order, jobs = order_of(task), server.printers.jobs
    has = capabilities_of(server.own.read(*order.device.split("/", 1)).json())
    sheets = Sheets(
        subscriber=task["requester"]["reference"],
        device=order.device,
        pages=pages,
        sheets=pages * order.copies,
        medium=str(order.medium or next(iter(has.media), "")),
        film_size=order.film_size or next(iter(has.film_sizes), ""),
        is_complete=is_complete,
    )
    jobs.meter(task["id"], sheets, server.clock())
    server.audit.record(
        principal, Access.EXPORT, resources=[f"Task/{task['id']}", order.device], studies=jobs.studies(task["id"]),
        details={"pages": str(pages), "sheets": str(sheets.sheets)},
        metered=Metered(Right.ORDER_HARD_COPY, charged=_customer(server, principal, task), pages=pages),
    )  # fmt: skip


def _customer(server: Backing, principal: Principal, task: Json) -> Principal:
    """Return whom an order is charged to: who placed it, whoever prints."""
    requester = task["requester"]["reference"]
    if requester == principal.subscriber:
        return principal
    try:
        return server.principals.acting_for(requester)
    except AppError:
        # It is suspended since. What came out came out.
        return Principal(requester, "", "", frozenset())


handlers.register(CODE)(
    Handler(Kind(CODE, PARAMETERS, OUTPUTS, check=check_order), run, admit=admit, reported=reported)
)
