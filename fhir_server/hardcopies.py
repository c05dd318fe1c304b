"""Hard copies of this server's images: who may print which of them where, and how that will look.

Joins studies, printers and Devices for whoever places an order, looks at it beforehand, or prints it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

from fhir_server.access import backing
from fhir_server.access.policy import require
from fhir_server.access.principals import Principal, Right
from fhir_server.hardcopy.composing import Copying, Plan, for_screen, of_inputs
from fhir_server.hardcopy.devices import PREFIX, availability, capabilities_of
from fhir_server.hardcopy.images import Chosen
from fhir_server.hardcopy.logo import logo_from
from fhir_server.hardcopy.orders import CODE, Order, order_of
from fhir_server.hardcopy.stored import StoredImages
from fhir_server.model.capability import operation_id
from fhir_server.model.task import Json, code_of
from fhir_server.printers import Printers
from fhir_server.store.printers import Registered
from fhir_server.store.repository import Repository
from fhir_server.studies import Studies
from imaging.archive import Archive, Instance
from imaging.errors import AppError, Category
from imaging.film import Page
from imaging.printer import Job

PREVIEW = "preview"  # the operation on a Task
MOST_SOURCE_PIXELS = 200_000_000  # of the images on a page that is shown beforehand
MOST_PAGES = 20  # of a document that is shown beforehand
RESOLUTION = 100  # dots per inch of a page on a screen
RESOLUTIONS = (72, 300)
_UNBORN = "00000000-0000-0000-0000-000000000000"  # in place of the id of a Task that is being placed


class Backing(backing.Backing, Protocol):
    """The server as hard copies see it."""

    @property
    def archive(self) -> Archive:
        """The images."""

    @property
    def studies(self) -> Studies:
        """Where DICOM meets FHIR."""

    @property
    def printers(self) -> Printers:
        """The register of printers."""


@dataclass(frozen=True, slots=True)
class Preview:
    """What will be printed, for a screen.

    job     with coarse pages of 8 bits
    plan    how many pages there are, and how large their images
    studies UIDs of the studies that are shown, with numbers of instances
    """

    job: Job
    plan: Plan
    studies: dict[str, int]

    def pages(self, first: int, last: int) -> Iterator[Page]:
        """Return some of the pages. Raises NOT_FOUND for those that there are not, TOO_LARGE for too much work."""
        if not 1 <= first <= last <= self.plan.pages:
            raise AppError(Category.NOT_FOUND, f"page {first} asked, there are {self.plan.pages}", where="page")
        if last - first >= MOST_PAGES:
            message = f"at most {MOST_PAGES} pages are shown at a time, these are {last - first + 1}: name one"
            raise AppError(Category.TOO_LARGE, message, where="page")
        each = len(self.job.sheets.image_boxes())
        work = sum(self.plan.source_pixels[(first - 1) * each : last * each])
        if work > MOST_SOURCE_PIXELS:
            message = f"images of {work:,} pixels; at most {MOST_SOURCE_PIXELS:,} are shown at a time"
            raise AppError(Category.TOO_LARGE, message, where="page")
        return islice(self.job.pages(first), last - first + 1)


def printer_of(server: Backing, principal: Principal, order: Order) -> tuple[Registered, Json]:
    """Return the printer of an order and its Device. Raises NOT_FOUND, FORBIDDEN, INVALID naming the input."""
    identifier = order.device.partition("/")[2]
    found = server.printers.device(identifier.removeprefix(PREFIX)) if identifier.startswith(PREFIX) else None
    if found is None:
        raise AppError(Category.NOT_FOUND, "input 'device': there is no such printer", where="device")
    device, printer = found.json(), server.printers.get(identifier.removeprefix(PREFIX))
    if printer.subscribers and principal.subscriber not in printer.subscribers:
        raise AppError(Category.FORBIDDEN, "input 'device': this printer is not for your orders", where="device")
    if not printer.is_suspended and (reason := availability(device)):
        raise AppError(Category.INVALID, f"input 'device': {reason}", where="device")
    return printer, device


def copying(server: Backing, principal: Principal, task: Json, device: Json) -> Copying:
    """Return the copying of a Task. Raises NOT_FOUND for images that are not here or out of the principal's reach."""

    def reach(found: Sequence[Instance]) -> None:
        server.studies.require_reach(found, principal)

    order, key = order_of(task), task.get("id", _UNBORN)
    return Copying(
        order=order,
        chosen=Chosen(StoredImages(server.archive), order, reach=reach),
        capabilities=capabilities_of(device),
        key=key,
        address=f"{server.fhir_url}/Task/{key}",
        logo=logo_from(server.config["hardcopy.logo"]),
    )


def preview(server: Backing, principal: Principal, task_id: str, *, dots_per_inch: int = RESOLUTION) -> Preview:
    """Return what a Task will print, made by the very code that prints it.

    Raises FORBIDDEN without the right, NOT_FOUND for a Task or images out of reach, INVALID for what cannot be printed.
    """
    require(principal, Right.ORDER_HARD_COPY, "see hard copies before they are printed")
    task = server.repository_for(principal).read("Task", task_id).json()
    if code_of(task) != CODE:
        raise AppError(Category.INVALID, f"only a Task with the code {CODE} has a preview", where="Task.code")
    low, high = RESOLUTIONS
    if not low <= dots_per_inch <= high:
        raise AppError(Category.INVALID, f"{low} to {high} dots per inch expected", where="resolution")
    _, device = printer_of(server, principal, order_of(task))
    with of_inputs():
        copy = copying(server, principal, task, device)
        plan = copy.check()
    return Preview(for_screen(copy.job(), dots_per_inch), plan, copy.chosen.studies())


def publish(own: Repository, fhir_url: str) -> None:
    """Write the definition of the operation that shows a hard copy before it is printed, where that changed."""
    own.update(_definition(fhir_url), create=True, if_changed=True)


def _definition(fhir_url: str) -> Json:
    identifier = operation_id("Task", PREVIEW)
    low, high = RESOLUTIONS
    return {
        "resourceType": "OperationDefinition",
        "id": identifier,
        "url": f"{fhir_url}/OperationDefinition/{identifier}",
        "name": "HardCopyPreview",
        "title": "A hard copy before it is printed",
        "status": "active",
        "kind": "operation",
        "affectsState": False,
        "description": "The pages that a hard-copy Task prints, composed by the code that prints them, for a screen. "
        "Accept chooses the form: image/png, application/pdf, or application/fhir+json for a Binary.",
        "code": PREVIEW,
        "resource": ["Task"],
        "system": False,
        "type": False,
        "instance": True,
        "parameter": [
            {
                "name": "page", "use": "in", "min": 0, "max": "1", "type": "positiveInt",
                "documentation": "Which page; PNG: the first unless it is said, PDF: all of up to "
                f"{MOST_PAGES} unless it is said",
            },
            {
                "name": "resolution", "use": "in", "min": 0, "max": "1", "type": "positiveInt",
                "documentation": f"Dots per inch, {low} to {high}; {RESOLUTION} unless it is said, and more where the "
                "code on the page could not be read otherwise",
            },
            {
                "name": "return", "use": "out", "min": 1, "max": "1", "type": "Binary",
                "documentation": "The page or pages",
            },
        ],
    }  # fmt: skip
